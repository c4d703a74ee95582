package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// nodeBin is where a node sees the lab's programs.
const nodeBin = "/opt/clustermesh-lab/bin"

// Netns names the node's network namespace, for ip netns exec and the like.
func (n *Node) Netns() string { return n.cluster.lab.cfg.Name + "-" + n.Name }

// Cluster is the one the node belongs to.
func (n *Node) Cluster() *Cluster { return n.cluster }

// Running tells whether the node has power.
func (n *Node) Running() bool { return n.holder().pid() != 0 }

// NodeCgroup is where every node finds its own version 2 cgroup, as a machine
// finds the root.
const NodeCgroup = "/run/node-cgroup"

// Cgroup is the node's cgroup below each hierarchy's root, as kubelet names it.
func (n *Node) Cgroup() string {
	return n.cluster.lab.cfg.cgroupName() + "/" + n.Name
}

// CgroupV2 is the path of the node's version 2 cgroup on the machine. BPF
// programs attached there see this node's processes only.
func (n *Node) CgroupV2() string {
	return filepath.Join(n.cluster.lab.cgroups.v2, n.Cgroup())
}

// Root is the node's file tree as seen from the machine.
func (n *Node) Root() (string, error) {
	pid := n.holder().pid()
	if pid == 0 {
		return "", fmt.Errorf("open files of %s: the node is off", n.Name)
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}

func (n *Node) dir() string { return filepath.Join(n.cluster.lab.Dir(), n.Name) }
func (n *Node) pid(daemon string) pidFile {
	return pidFile(filepath.Join(n.dir(), "pids", daemon))
}
func (n *Node) holder() pidFile      { return n.pid("holder") }
func (n *Node) kubelet() pidFile     { return n.pid("kubelet") }
func (n *Node) systemCgroup() string { return filepath.Join(n.CgroupV2(), "system") }

// writeFiles puts files, by their paths on the node, onto the node. They go
// through its root: what is written below an overlay is not seen by watchers.
func (n *Node) writeFiles(files map[string][]byte) error {
	root, err := n.Root()
	if err != nil {
		return err
	}
	for path, data := range files {
		if err := writeFile(filepath.Join(root, path), data); err != nil {
			return err
		}
	}
	return nil
}

// powerOn makes the node's namespaces unless they are there: a boot.
func (n *Node) powerOn(ctx context.Context) error {
	if n.holder().pid() != 0 && netnsExists(n.Netns()) {
		return nil
	}
	if err := n.powerOff(ctx); err != nil {
		return err
	}
	if err := n.cluster.lab.cgroups.make(n.Cgroup()); err != nil {
		return err
	}
	if err := os.MkdirAll(n.systemCgroup(), 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := newNetns(n.Netns()); err != nil {
		return err
	}
	if err := n.plug(); err != nil {
		return err
	}
	if err := n.configureNet(); err != nil {
		return fmt.Errorf("configure network of %s: %w", n.Name, err)
	}
	return n.startHolder()
}

// powerOff ends the node at once; its disk (dir) stays.
func (n *Node) powerOff(ctx context.Context) error {
	l := n.cluster.lab
	if err := l.cgroups.kill(ctx, n.Cgroup()); err != nil {
		return err
	}
	if err := l.cgroups.remove(ctx, n.Cgroup()); err != nil {
		return err
	}
	if err := l.unplug(n.Name); err != nil {
		return err
	}
	return deleteNetns(n.Netns())
}

// holderSpec is what labnode hold is told; see test/lab/cmd/labnode.
type holderSpec struct {
	Hostname string `json:"hostname"`
	Dir      string `json:"dir"`
	BinFrom  string `json:"binFrom"`
	BinTo    string `json:"binTo"`
	Cgroup   string `json:"cgroup"`
}

// startHolder starts the process that owns the node's mount and UTS namespaces.
func (n *Node) startHolder() error {
	spec, err := json.Marshal(holderSpec{n.Name, n.dir(), n.cluster.lab.parts.Dir, nodeBin, filepath.Join(n.cluster.lab.cgroups.v2, n.Cgroup())})
	if err != nil {
		return err
	}
	cmd := exec.Command("nsenter", "--net="+netnsPath(n.Netns()), "--",
		"unshare", "-m", "-u", "--propagation", "private", "--",
		n.cluster.lab.ownBin("labnode"), "hold", string(spec))
	ready, out, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start namespaces of %s: %w", n.Name, err)
	}
	defer ready.Close()
	cmd.Stdout = out
	err = spawn(cmd, n.systemCgroup(), n.Log("holder"), n.holder())
	out.Close()
	if err != nil {
		return err
	}
	line, _ := bufio.NewReader(ready).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		log, _ := os.ReadFile(n.Log("holder"))
		return fmt.Errorf("make namespaces of %s: %s", n.Name, lastLines(string(log)))
	}
	return nil
}

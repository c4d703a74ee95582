package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/clustermesh/clustermesh/test/lab"
)

// The helper processes of this program.
const (
	verbPeers  = "peers"   // plays other clusters, see package peers
	verbOnNode = "on-node" // measures from inside a node of the lab
)

// own is our program, wherever it is: on a node the path it was started by may
// be another file.
const own = "/proc/self/exe"

// onNode is the process that measureOnNode starts.
func onNode(ctx context.Context, what, arg string) error {
	measure := map[string]func(context.Context, []byte) ([]Result, error){
		"mirror": mirrorOnNode, "agent": agentOnNode, "services": servicesOnNode,
	}[what]
	if measure == nil {
		return fmt.Errorf("on-node %q is not known", what)
	}
	results, err := measure(ctx, []byte(arg))
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// measureOnNode runs a part in the namespaces and the cgroup of a node, so that
// no packet of it is seen elsewhere and all of it ends with the node.
func measureOnNode(ctx context.Context, n *lab.Node, what string, arg any) ([]Result, error) {
	data, err := json.Marshal(arg)
	if err != nil {
		return nil, err
	}
	root, err := n.Root()
	if err != nil {
		return nil, err
	}
	proc := filepath.Dir(root)
	cmd := exec.CommandContext(ctx, "nsenter", "--mount="+proc+"/ns/mnt", "--uts="+proc+"/ns/uts", "--net="+proc+"/ns/net", "--",
		fmt.Sprintf("/proc/%d/exe", os.Getpid()), verbOnNode, what, string(data))
	cgroup, err := os.Open(filepath.Join(n.CgroupV2(), "system"))
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measure %s on %s: %w", what, n.Name, err)
	}
	var results []Result
	if err := json.Unmarshal(out, &results); err != nil {
		return nil, fmt.Errorf("measure %s on %s said %q: %w", what, n.Name, out, err)
	}
	return results, nil
}

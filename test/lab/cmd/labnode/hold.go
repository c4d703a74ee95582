package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// spec says what the node looks like.
type spec struct {
	Hostname string `json:"hostname"`
	// Dir holds the node's disk.
	Dir string `json:"dir"`
	// BinFrom shows up as BinTo on the node.
	BinFrom string `json:"binFrom"`
	BinTo   string `json:"binTo"`
	// Cgroup is the version 2 cgroup of all that runs on the node. It shows up
	// at /run/node-cgroup, for what attaches to the root of a machine's.
	Cgroup string `json:"cgroup"`
}

const nodeCgroup = "/run/node-cgroup" // lab.NodeCgroup

// hold turns the namespaces it was started in into the node's, says "ready" and
// keeps them until it is killed.
func hold(arg string) error {
	var s spec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("decode spec: %w", err)
	}
	if err := makeTree(s); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set hostname %s: %w", s.Hostname, err)
	}
	fmt.Println("ready")
	// A node is switched off by killing its cgroup, never asked to leave.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	for range ignored {
	}
	return nil
}

// makeTree mounts, over the machine's tree: /etc and /opt with the node's own
// changes on top, /run, /var/log and /var/lib of the node's own, and /sys of the
// node's network namespace with its own bpffs.
func makeTree(s spec) error {
	for _, step := range []func(spec) error{mountOverlays, mountSysctls, mountSys, mountRun, mountVar} {
		if err := step(s); err != nil {
			return err
		}
	}
	// Shared: mounts that pods make with bidirectional propagation must show.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return mkdirs("/etc/cni/net.d", "/opt/cni/bin", "/etc/containerd", "/etc/kubernetes",
		"/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/run/netns", "/run/lock", "/run/containerd")
}

func mountOverlays(s spec) error {
	if err := hideMachines(s); err != nil {
		return err
	}
	for _, name := range []string{"etc", "opt"} {
		upper := filepath.Join(s.Dir, name+"-upper")
		work := filepath.Join(s.Dir, name+"-work")
		if err := mkdirs(upper, work); err != nil {
			return err
		}
		opts := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", name, upper, work)
		if err := unix.Mount("overlay", "/"+name, "overlay", 0, opts); err != nil {
			return fmt.Errorf("mount overlay on /%s: %w", name, err)
		}
	}
	if err := mkdirs(s.BinTo); err != nil {
		return err
	}
	return bind(s.BinFrom, s.BinTo)
}

// hideMachines keeps the machine's own Kubernetes, should it have one, out of the
// node: these directories begin empty.
func hideMachines(s spec) error {
	for _, name := range []string{"etc-upper/cni", "etc-upper/containerd", "etc-upper/kubernetes", "opt-upper/cni"} {
		dir := filepath.Join(s.Dir, name)
		if err := mkdirs(dir); err != nil {
			return err
		}
		if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("make %s opaque: %w", dir, err)
		}
	}
	return nil
}

// mountSysctls shows kubelet the machine-wide settings it insists on, so that it
// does not set them on the machine.
func mountSysctls(s spec) error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		from := filepath.Join(s.Dir, "sysctl", name)
		if err := mkdirs(filepath.Dir(from)); err != nil {
			return err
		}
		if err := os.WriteFile(from, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("write sysctl: %w", err)
		}
		if err := bind(from, filepath.Join("/proc/sys", name)); err != nil {
			return err
		}
	}
	return nil
}

func mountSys(s spec) error {
	cg := filepath.Join(s.Dir, "cgroup")
	if err := mkdirs(cg); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", cg, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind cgroups: %w", err)
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unix.Mount(cg, "/sys/fs/cgroup", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move cgroups: %w", err)
	}
	// A kernel without BPF can still run a node.
	_ = unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700")
	return nil
}

func mountRun(s spec) error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := mkdirs(nodeCgroup); err != nil {
		return err
	}
	return bind(s.Cgroup, nodeCgroup)
}

// mountVar comes last: the node's disk itself is usually below /var/lib.
func mountVar(s spec) error {
	for _, name := range []string{"log", "lib"} {
		from := filepath.Join(s.Dir, "var-"+name)
		if err := mkdirs(from); err != nil {
			return err
		}
		if err := bind(from, "/var/"+name); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

func mkdirs(paths ...string) error {
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

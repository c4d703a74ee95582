package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stop is a power cut: every process of the node ends at once, its memory
// (/run, network, kernel state) is gone, its disk stays.
func (n *Node) Stop(ctx context.Context) error {
	if err := n.powerOff(ctx); err != nil {
		return fmt.Errorf("stop node %s: %w", n.Name, err)
	}
	return nil
}

// Start boots the node and starts its daemons, on the first node the control
// plane too. It does not wait for Ready. Starting a running node starts the
// daemons that are missing.
func (n *Node) Start(ctx context.Context) error {
	if err := n.start(ctx); err != nil {
		return fmt.Errorf("start node %s: %w", n.Name, err)
	}
	return nil
}

func (n *Node) start(ctx context.Context) error {
	if err := n.cluster.ensureNodePKI(n); err != nil {
		return err
	}
	if err := n.powerOn(ctx); err != nil {
		return err
	}
	if n.isControlPlane() {
		if err := n.cluster.startControlPlane(ctx); err != nil {
			return err
		}
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	if err := n.startKubelet(); err != nil {
		return err
	}
	if n.cluster.lab.cfg.CNI != Bridge {
		return nil
	}
	if err := n.cluster.waitRegistered(ctx); err != nil {
		return err
	}
	return n.cluster.lab.installBridges(ctx)
}

func (n *Node) isControlPlane() bool { return n == n.cluster.Nodes[0] }

// Kill ends every process of the node, containers included, whose program has
// that name, with SIGKILL, and waits until they are gone. Nothing but kubelet
// restarts anything: use Start for the lab's own daemons.
func (n *Node) Kill(ctx context.Context, program string) error {
	pids := n.PIDs(program)
	if len(pids) == 0 {
		return fmt.Errorf("kill %s on %s: no such process", program, n.Name)
	}
	var started []string
	for _, pid := range pids {
		s, _ := startTime(pid)
		started = append(started, s)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %s (%d) on %s: %w", program, pid, n.Name, err)
		}
	}
	return poll(ctx, 10*time.Second, program+" on "+n.Name+" to end", func() (bool, error) {
		for i, pid := range pids {
			if s, err := startTime(pid); err == nil && s == started[i] {
				return false, nil
			}
		}
		return true, nil
	})
}

// PIDs gives the node's processes, containers included, whose program has that name.
func (n *Node) PIDs(program string) []int {
	var found []int
	for _, pid := range n.cluster.lab.cgroups.processes(n.Cgroup()) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		argv0, _, _ := strings.Cut(string(data), "\x00")
		if filepath.Base(argv0) == program {
			found = append(found, pid)
		}
	}
	return found
}

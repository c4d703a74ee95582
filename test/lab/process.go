package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pidFile names a process for later: its number, and its start time, since
// numbers are used again.
type pidFile string

func (f pidFile) write(pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return writeFile(string(f), fmt.Appendf(nil, "%d %s", pid, started))
}

// pid gives the process, or 0 when it does not run any more.
func (f pidFile) pid() int {
	data, err := os.ReadFile(string(f))
	if err != nil {
		return 0
	}
	number, started, _ := strings.Cut(string(data), " ")
	pid, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	if now, err := startTime(pid); err != nil || now != started {
		return 0
	}
	return pid
}

// started is when the process was started.
func (f pidFile) started() time.Time {
	info, err := os.Stat(string(f))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// startTime gives field 22 of /proc/PID/stat; a zombie counts as gone.
func startTime(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field, the name in parentheses, may hold spaces.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}

// spawn starts cmd in the cgroup, with a session and a log of its own, so that it
// outlives us.
func spawn(cmd *exec.Cmd, cgroup, log string, pid pidFile) error {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	if err := startIn(cmd, cgroup, true); err != nil {
		return err
	}
	// Reaps it should it end before us; nobody waits for that.
	go func() { _ = cmd.Wait() }()
	if err := pid.write(cmd.Process.Pid); err != nil {
		data, _ := os.ReadFile(log)
		return fmt.Errorf("start %s: it ended at once, see %s: %s", strings.Join(cmd.Args, " "), log, lastLines(string(data)))
	}
	return nil
}

// startIn starts cmd inside a version 2 cgroup from its first instruction.
func startIn(cmd *exec.Cmd, cgroup string, session bool) error {
	dir, err := os.Open(cgroup)
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: session}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

// command runs argv in the node's namespaces. nsenter, unlike ip netns exec,
// leaves /sys as the node has it.
func (n *Node) command(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	pid := n.holder().pid()
	if pid == 0 {
		return nil, fmt.Errorf("run %s on %s: the node is off", argv[0], n.Name)
	}
	enter := []string{"-t", strconv.Itoa(pid), "-m", "-u", "-n", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, argv...)...)
	cmd.Env = []string{
		"PATH=" + nodeBin + ":" + toolPath,
		"HOME=/root", "KUBECONFIG=/etc/kubernetes/admin.kubeconfig", "TERM=" + os.Getenv("TERM"),
	}
	return cmd, nil
}

// Exec runs argv on the node, as an administrator logged in there would, and
// gives its output. On failure the error carries what it printed.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	cmd, err := n.command(ctx, argv...)
	if err != nil {
		return "", err
	}
	return runIn(cmd, n.systemCgroup(), strings.Join(argv, " ")+" on "+n.Name)
}

func runIn(cmd *exec.Cmd, cgroup, what string) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := startIn(cmd, cgroup, false); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("run %s: %w: %s", what, err, lastLines(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}

func lastLines(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 600 {
		s = "…" + s[len(s)-600:]
	}
	return s
}

// Attach runs argv on the node with our terminal and gives its exit code.
func (n *Node) Attach(ctx context.Context, argv ...string) (int, error) {
	cmd, err := n.command(ctx, argv...)
	if err != nil {
		return 0, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := startIn(cmd, n.systemCgroup(), false); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// daemon starts argv on the node unless it runs. Its name is that of its log.
func (n *Node) daemon(name string, argv ...string) error {
	pid := n.pid(name)
	if pid.pid() != 0 {
		return nil
	}
	cmd, err := n.command(context.Background(), argv...)
	if err != nil {
		return err
	}
	return spawn(cmd, n.systemCgroup(), n.Log(name), pid)
}

// Log is where a daemon of the node writes: containerd, kubelet, kube-proxy and,
// on the first node, etcd, kube-apiserver, kube-controller-manager, kube-scheduler.
func (n *Node) Log(daemon string) string {
	return filepath.Join(n.dir(), "log", daemon+".log")
}

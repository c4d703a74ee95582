package main

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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// server is a real clustermesh-apiserver, started by us on the node in place of
// its pod: so it can be killed and started at once, without kubelet's patience.
type server struct {
	bin, dir string
	cmd      *exec.Cmd
}

// newServer takes over from the pods: they are scaled away, and the
// configuration that they had is ours.
func newServer(ctx context.Context, c *cluster, bin, dir string) (*server, error) {
	deployments := c.AppsV1().Deployments(namespace)
	scale, err := deployments.GetScale(ctx, "clustermesh-apiserver", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	scale.Spec.Replicas = 0
	if _, err := deployments.UpdateScale(ctx, scale.Name, scale, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	// The agents would program what the peers announce; that is another part.
	if err := c.AppsV1().DaemonSets(namespace).Delete(ctx, "clustermesh-agent", metav1.DeleteOptions{}); err != nil {
		return nil, err
	}
	err = poll(ctx, 200*time.Millisecond, time.Minute, "the pods of clustermesh to end", func() bool {
		pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		return err == nil && len(pods.Items) == 0
	})
	if err != nil {
		return nil, err
	}
	conf, err := c.CoreV1().ConfigMaps(namespace).Get(ctx, "clustermesh-config", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return &server{bin: bin, dir: dir}, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(conf.Data["config.yaml"]), 0o600)
}

// start starts the process and does not wait for anything.
func (s *server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "apiserver.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.bin, "--config", filepath.Join(s.dir, "config.yaml"), "--kubeconfig", kubeconfig,
		"--data-dir", filepath.Join(s.dir, "data"), "--socket", filepath.Join(s.dir, "apiserver.sock"),
		"--namespace", namespace, "--pod", "bench", "--node", hostname())
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return s.cmd.Start()
}

// kill ends it with SIGKILL, if it runs.
func (s *server) kill() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// processor is the processor time that it has used.
func (s *server) processor() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// memory of a process in MiB: resident now, the most it ever was, and how much
// of what is resident now is its own and not a mapped file's.
type memory struct{ Now, Peak, Anon float64 }

func memoryOf(pid int) (m memory, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		into := map[string]*float64{"VmRSS": &m.Now, "VmHWM": &m.Peak, "RssAnon": &m.Anon}[key]
		if into == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			return m, fmt.Errorf("read memory of process %d: %w", pid, err)
		}
		*into = kib / 1024
	}
	return m, nil
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

// freshDir makes an empty directory on the node's disk, and a function that
// removes it.
func freshDir(path string) (remove func(), err error) {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return func() { _ = os.RemoveAll(path) }, os.MkdirAll(path, 0o700)
}

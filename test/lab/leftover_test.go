package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// snapshot is what of the machine a lab might leave something in. What other labs
// make at the same time is not in it.
type snapshot struct {
	Links   []string
	Mounts  []string
	Cgroups []string
}

func machine(t *testing.T) snapshot {
	t.Helper()
	var s snapshot
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		s.Links = append(s.Links, link.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, netnsDir) {
			s.Mounts = append(s.Mounts, line)
		}
	}
	groups, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range append(groups.v1, groups.v2) {
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), "clustermesh-lab-") {
				s.Cgroups = append(s.Cgroups, filepath.Join(root, e.Name()))
			}
		}
	}
	slices.Sort(s.Mounts)
	return s
}

func checkNothingLeft(t *testing.T, before snapshot, name string, pids []int) {
	t.Helper()
	if diff := cmp.Diff(before, machine(t)); diff != "" {
		t.Errorf("the machine before (-) and after (+):\n%s", diff)
	}
	for _, pattern := range []string{
		netnsPath(name + "-*"),
		filepath.Join(cgroupMount, "clustermesh-lab-"+name),
		filepath.Join(cgroupMount, "*", "clustermesh-lab-"+name),
		filepath.Join(DefaultDir(), name),
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	for _, pid := range pids {
		if _, err := startTime(pid); err == nil {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			t.Errorf("process %d still runs: %q", pid, cmdline)
		}
	}
	if len(pids) == 0 {
		t.Error("the lab had no processes: the test looks in the wrong place")
	}
}

// TestMain lets TestKilledUp run an Up in a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_UP") != "" {
		if _, err := Up(context.Background(), killedConfig()); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killedConfig() Config {
	return Config{Name: "labkilled", Clusters: []ClusterConfig{{Name: "half", Nodes: 2}}, KubeProxy: NoKubeProxy}
}

// TestKilledUp kills an Up half-way: the next one makes a whole lab of it, and
// Down of a half-made one leaves nothing.
func TestKilledUp(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ctx := t.Context()
	cfg := killedConfig().withDefaults()
	before := machine(t)
	defer func() { _ = Down(context.Background(), cfg.Dir, cfg.Name) }()

	pids := killUpHalfway(t, cfg)
	if err := Down(ctx, cfg.Dir, cfg.Name); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, before, cfg.Name, pids)

	killUpHalfway(t, cfg)
	cfg.Out = t.Output()
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Clusters[0].Kubectl(ctx, "get", "nodes", "-o", "name")
	if want := "node/half-n1\nnode/half-n2\n"; err != nil || out != want {
		t.Errorf("nodes = %q, %v; want %q", out, err, want)
	}
}

// killUpHalfway kills an Up, of another process, once its first API server starts,
// and gives the processes it leaves.
func killUpHalfway(t *testing.T, cfg Config) []int {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "LAB_TEST_UP=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	api := pidFile(filepath.Join(cfg.Dir, cfg.Name, "half-n1", "pids", "kube-apiserver"))
	err := poll(t.Context(), time.Minute, "the API server to start", func() (bool, error) {
		select {
		case err := <-ended:
			return false, errors.Join(errors.New("up ended before it could be killed"), err)
		default:
			return api.pid() != 0, nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	groups, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	return groups.processes(cfg.cgroupName())
}

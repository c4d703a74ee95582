package lab

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// needRoot skips where a lab cannot be, which must not happen in CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("labs need root, and CI must have it")
	}
	t.Skip("labs need root")
}

// TestLab takes one real lab through everything a lab can do; the steps build on
// each other, since booting one per step would cost minutes.
func TestLab(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ctx := t.Context()
	cfg := Config{
		Name: "labtest", CNI: Bridge, Fresh: true, Out: t.Output(),
		Clusters: []ClusterConfig{{Name: "solo", Nodes: 2}},
	}
	before := machine(t)
	defer func() {
		// t.Context has ended by now.
		if err := Down(context.Background(), cfg.Dir, cfg.Name); err != nil {
			t.Error(err)
		}
	}()
	l, err := Up(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := l.Clusters[0]
	pods := map[string]Addrs{}
	for name, node := range map[string]string{"a": "solo-n1", "b": "solo-n2"} {
		if pods[name], err = c.RunTool(ctx, Tool{Name: name, Node: node}); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		run  func(*testing.T, *Cluster, map[string]Addrs)
	}{
		{"pods reach pods of the other node", testReach},
		{"up again reuses", testUpAgain},
		{"cut and heal", testCut},
		{"node loses power and boots", testPower},
		{"killed kubelet is started", testKillKubelet},
		{"node is added and removed", testMembers},
		{"node moves to other addresses", testReaddress},
		{"machine restarts", testMachineRestart},
		// Last: a container that died twice waits 10 seconds to start again.
		{"killed container starts again", testKill},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, c, pods) }) {
			return
		}
	}
	pids := l.cgroups.processes(cfg.cgroupName())
	if err := Down(ctx, cfg.Dir, cfg.Name); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, before, cfg.Name, pids)
}

// answer is what labtool udp prints.
type answer struct {
	Server struct {
		Pod, Node, Source string
		Hops              int
	}
}

func ask(ctx context.Context, c *Cluster, pod string, to netip.Addr) (answer, error) {
	out, err := c.PodExec(ctx, "default", pod, "labtool", "udp", "--timeout", "500ms", to.String())
	if err != nil {
		return answer{}, err
	}
	var a answer
	return a, json.Unmarshal([]byte(out), &a)
}

func testReach(t *testing.T, c *Cluster, pods map[string]Addrs) {
	// The first time the bridge's IPv6 addresses are still being checked for duplicates.
	waitReach(t, c, pods)
	for _, to := range pods["b"].List() {
		a, err := ask(t.Context(), c, "a", to)
		if err != nil {
			t.Fatal(err)
		}
		from := pods["a"].V4
		if to.Is6() {
			from = pods["a"].V6
		}
		source := netip.MustParseAddrPort(a.Server.Source).Addr()
		if a.Server.Pod != "b" || a.Server.Node != "solo-n2" || source != from || a.Server.Hops != 2 {
			t.Errorf("ask %s from %s: answer %+v, want pod b of solo-n2, source preserved, 2 hops", to, from, a.Server)
		}
	}
}

func testUpAgain(t *testing.T, c *Cluster, pods map[string]Addrs) {
	cfg := c.lab.cfg
	cfg.Out = t.Output()
	cfg.Fresh = false
	again, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.Clusters[0].Port != c.Port {
		t.Errorf("port = %d, want %d as before", again.Clusters[0].Port, c.Port)
	}
	if again.Clusters[0].Nodes[0].holder().pid() != c.Nodes[0].holder().pid() {
		t.Error("the node was booted again")
	}
	testReach(t, c, pods)

	cfg.Stack = IPv4
	if _, err := Up(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "stack") {
		t.Errorf("up with another stack: %v, want an error that says so", err)
	}
}

func testCut(t *testing.T, c *Cluster, pods map[string]Addrs) {
	ctx := t.Context()
	for _, ends := range [][2]string{{"solo-n1", "solo-n2"}, {"solo-n2", Everyone}, {"solo", "solo"}} {
		for range 2 {
			if err := c.lab.Cut(ctx, ends[0], ends[1]); err != nil {
				t.Fatal(err)
			}
		}
		for _, to := range pods["b"].List() {
			// Pod a is on the API server's node: kubectl exec needs no link.
			if a, err := ask(ctx, c, "a", to); err == nil {
				t.Errorf("%s is reached over the cut link %v: %+v", to, ends, a)
			} else if !strings.Contains(err.Error(), "no answer") {
				t.Error(err)
			}
		}
		for range 2 {
			if err := c.lab.Heal(ctx, ends[0], ends[1]); err != nil {
				t.Fatal(err)
			}
		}
		testReach(t, c, pods)
	}
	if err := c.lab.Cut(ctx, "solo-n1", "nobody"); err == nil {
		t.Error("cut from a node that does not exist: no error")
	}
}

func testKill(t *testing.T, c *Cluster, _ map[string]Addrs) {
	ctx := t.Context()
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	pod, err := client.CoreV1().Pods("default").Get(ctx, "b", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	restarts := pod.Status.ContainerStatuses[0].RestartCount
	if err := c.Nodes[1].Kill(ctx, "labtool"); err != nil {
		t.Fatal(err)
	}
	err = poll(ctx, 30*time.Second, "the container to start again", func() (bool, error) {
		pod, err := client.CoreV1().Pods("default").Get(ctx, "b", metav1.GetOptions{})
		return err == nil && len(pod.Status.ContainerStatuses) == 1 &&
			pod.Status.ContainerStatuses[0].RestartCount > restarts && podReady(pod), err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[1].Kill(ctx, "no-such-program"); err == nil {
		t.Error("kill of a program that does not run: no error")
	}
}

// testMachineRestart ends every process and deletes every namespace, as a restart
// of the machine does, and leaves only the disk.
func testMachineRestart(t *testing.T, c *Cluster, pods map[string]Addrs) {
	ctx := t.Context()
	l := c.lab
	if err := l.cgroups.kill(ctx, l.cfg.cgroupName()); err != nil {
		t.Fatal(err)
	}
	if err := l.cgroups.remove(ctx, l.cfg.cgroupName()); err != nil {
		t.Fatal(err)
	}
	if err := deleteNamespaces(l.cfg.Name); err != nil {
		t.Fatal(err)
	}
	cfg := l.cfg
	cfg.Fresh, cfg.Out = false, t.Output()
	if _, err := Up(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	waitReach(t, c, pods)
}

func testKillKubelet(t *testing.T, c *Cluster, _ map[string]Addrs) {
	n := c.Nodes[1]
	if err := n.Kill(t.Context(), "kubelet"); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(n.PIDs("kubelet")) != 1 {
		t.Error("kubelet does not run")
	}
}

// waitReach waits until pod b answers a over both families, at its addresses of then.
func waitReach(t *testing.T, c *Cluster, pods map[string]Addrs) {
	t.Helper()
	ctx := t.Context()
	err := poll(ctx, time.Minute, "pod b to answer", func() (bool, error) {
		addrs, err := c.RunTool(ctx, Tool{Name: "b", Node: "solo-n2"})
		if err != nil {
			return false, err
		}
		pods["b"] = addrs
		for _, to := range addrs.List() {
			if _, err := ask(ctx, c, "a", to); err != nil {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testPower(t *testing.T, c *Cluster, pods map[string]Addrs) {
	ctx := t.Context()
	n := c.Nodes[1]
	if err := n.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if n.Running() || netnsExists(n.Netns()) {
		t.Error("the node still has namespaces")
	}
	if _, err := n.Exec(ctx, "true"); err == nil {
		t.Error("exec on a node that is off: no error")
	}
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waitReach(t, c, pods)
}

func testMembers(t *testing.T, c *Cluster, _ map[string]Addrs) {
	ctx := t.Context()
	n, err := c.AddNode(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n.Name != "solo-n3" {
		t.Errorf("the new node is %s, want solo-n3", n.Name)
	}
	if _, err := n.Exec(ctx, "kubectl", "get", "node", n.Name); err != nil {
		t.Error(err)
	}
	if err := c.RemoveNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	out, err := c.Kubectl(ctx, "get", "nodes", "-o", "name")
	if err != nil || strings.Contains(out, "n3") {
		t.Errorf("nodes = %q, %v; want the new one gone", out, err)
	}
	if err := c.RemoveNode(ctx, c.Nodes[0]); err == nil {
		t.Error("removed the control plane's node: no error")
	}
}

func testReaddress(t *testing.T, c *Cluster, pods map[string]Addrs) {
	ctx := t.Context()
	n := c.Nodes[1]
	if err := n.Readdress(ctx, 50); err != nil {
		t.Fatal(err)
	}
	want := "172.18.1.50 fd00:172:18::1:50"
	err := poll(ctx, 30*time.Second, "the API to show "+want, func() (bool, error) {
		out, err := c.Kubectl(ctx, "get", "node", n.Name, "-o",
			`jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		return out == want, err
	})
	if err != nil {
		t.Error(err)
	}
	waitReach(t, c, pods)
	if err := c.Nodes[0].Readdress(ctx, 60); err == nil {
		t.Error("re-addressed the control plane's node: no error")
	}
}

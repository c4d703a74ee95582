package kube_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

var quiet = slog.New(slog.DiscardHandler)

// TestAgainstRealServer runs everything that reads or writes Kubernetes against
// one real API server; each part has objects of its own.
func TestAgainstRealServer(t *testing.T) {
	s := kubetest.Start(t)
	c := s.Client()
	t.Run("secrets", func(t *testing.T) { testSecrets(t, c) })
	t.Run("node writes", func(t *testing.T) { testNodeWrites(t, c) })
	t.Run("peers", func(t *testing.T) { testPeers(t, c) })
	t.Run("leader", func(t *testing.T) { testLeader(t, c) })
	t.Run("cluster set", func(t *testing.T) { testClusterSet(t, c) })
	t.Run("outage", func(t *testing.T) { testOutage(t, s, c) }) // last, since it stops the server
}

// run calls a watching function until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timeout: ", what)
		}
	}
}

// Replicas that start together make one CA between them.
func testSecrets(t *testing.T, c *kube.Client) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 8 {
		wg.Go(func() {
			done, err := c.PutSecret(t.Context(), kube.SecretCA, kube.TLSSecret{Cert: "c", Key: string(rune('a' + i))})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if done {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Fatalf("%d replicas made the secret, want 1", made)
	}
	if _, ok, err := c.GetSecret(t.Context(), "nobody-made-it"); ok || err != nil {
		t.Fatal(ok, err)
	}
	table := state.New[string, kube.TLSSecret]()
	run(t, func(ctx context.Context) error { return c.RunSecret(ctx, quiet, kube.SecretCA, table) })
	old, ok, err := c.GetSecret(t.Context(), kube.SecretCA)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	changed := old
	changed.CA = "bundle"
	if done, err := c.PutSecret(t.Context(), kube.SecretCA, changed); !done || err != nil {
		t.Fatal(done, err)
	}
	if done, err := c.PutSecret(t.Context(), kube.SecretCA, changed); done || err != nil {
		t.Fatal("a change of an old version came through: ", done, err)
	}
	eventually(t, "the change is seen", func() bool { s, _ := table.Get(kube.SecretCA); return s.CA == "bundle" && s.Key == old.Key })
}

func testNodeWrites(t *testing.T, c *kube.Client) {
	taints := []corev1.Taint{{Key: "clustermesh.io/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoExecute}}
	_, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w1"}, Spec: corev1.NodeSpec{Taints: taints}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := errors.Join(c.SetNetworkReady(t.Context(), "w1", "AgentIsReady", "it serves"),
			c.RemoveTaint(t.Context(), "w1", "clustermesh.io/agent-not-ready:NoSchedule"),
			c.SetPodCIDRs(t.Context(), "w1", []string{"10.2.1.0/24", "fd00:2::/64"})); err != nil {
			t.Fatal(err)
		}
	}
	n, err := c.CoreV1().Nodes().Get(t.Context(), "w1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ready := false
	for _, cond := range n.Status.Conditions {
		ready = ready || cond.Type == corev1.NodeNetworkUnavailable && cond.Status == corev1.ConditionFalse
	}
	// The API server's admission adds a taint of its own to new nodes.
	left := map[string]bool{}
	for _, x := range n.Spec.Taints {
		left[x.Key] = true
	}
	if !ready || left["clustermesh.io/agent-not-ready"] || !left["other"] || len(n.Spec.PodCIDRs) != 2 || n.Spec.PodCIDR != "10.2.1.0/24" {
		t.Fatalf("node is %+v %+v", n.Spec, n.Status.Conditions)
	}
	if err := c.SetPodCIDRs(t.Context(), "w1", []string{"10.2.9.0/24"}); err == nil {
		t.Fatal("pod CIDRs were changed")
	}
}

func testPeers(t *testing.T, c *kube.Client) {
	table := state.New[string, kube.Peer]()
	run(t, func(ctx context.Context) error { return c.RunPeers(ctx, quiet, table) })
	p := &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: "east"}, Spec: v1alpha1.PeerSpec{Endpoints: []string{"192.0.2.1:7473"}}}
	p, err := c.Peers.Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Peer is seen", func() bool { r, ok := table.Get("east"); return ok && r.Spec().Endpoints[0] == "192.0.2.1:7473" })
	p.Status.Nodes = 3
	if p, err = c.Peers.UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil || p.Status.Nodes != 3 {
		t.Fatal(err)
	}
	p.Finalizers = []string{"example.com/wait"}
	if _, err = c.Peers.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Peers.Delete(t.Context(), "east", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a Peer that is being deleted counts as gone", func() bool { _, ok := table.Get("east"); return !ok })
}

// The second candidate begins after the first has ended.
func testLeader(t *testing.T, c *kube.Client) {
	var mu sync.Mutex
	leading, most := 0, 0
	started := make(chan string, 2)
	lead := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			mu.Lock()
			leading++
			most = max(most, leading)
			mu.Unlock()
			started <- name
			<-ctx.Done()
			mu.Lock()
			leading--
			mu.Unlock()
			return ctx.Err()
		}
	}
	first, second := c.NewLeader("test", "first", quiet), c.NewLeader("test", "second", quiet)
	ctx, resign := context.WithCancel(context.Background())
	defer resign()
	var wg sync.WaitGroup
	wg.Go(func() { _ = first.Run(ctx, lead("first")) })
	if got := <-started; got != "first" || !first.Leading() {
		t.Fatal(got)
	}
	run(t, func(ctx context.Context) error { return second.Run(ctx, lead("second")) })
	resign()
	wg.Wait()
	if first.Leading() {
		t.Error("the first still leads")
	}
	select {
	case <-started:
	case <-time.After(time.Minute):
		t.Fatal("nobody took over")
	}
	if !second.Leading() || most != 1 {
		t.Errorf("second leads: %v; at most %d at once", second.Leading(), most)
	}
}

// An API server that is away costs no row, and what it has learnt meanwhile is
// caught up with.
func testOutage(t *testing.T, s *kubetest.Server, c *kube.Client) {
	table := state.New[model.NodeKey, model.Node]()
	run(t, func(ctx context.Context) error {
		return c.RunNodes(ctx, quiet, kube.NodeOptions{Cluster: "us"}, table)
	})
	key := func(name string) model.NodeKey { return model.NodeKey{Cluster: "us", Name: name} }
	create := func(name string) {
		t.Helper()
		if _, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("o1")
	eventually(t, "o1 is seen", func() bool { _, ok := table.Get(key("o1")); return ok && table.Synced() })
	wake := table.Subscribe()
	<-wake
	n, err := c.CoreV1().Nodes().Get(t.Context(), "o1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	if _, err := c.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	time.Sleep(time.Second) // nothing is to happen
	select {
	case <-wake:
		t.Error("a node's heartbeat or the outage woke readers")
	default:
	}
	if _, ok := table.Get(key("o1")); !ok || !table.Synced() {
		t.Fatal("the row is gone")
	}
	s.Resume()
	create("o2")
	if err := c.CoreV1().Nodes().Delete(t.Context(), "o1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the table follows again", func() bool {
		_, one := table.Get(key("o1"))
		_, two := table.Get(key("o2"))
		return two && !one
	})
}

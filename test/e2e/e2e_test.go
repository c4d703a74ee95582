// Package e2e runs the product on real Kubernetes clusters in network
// namespaces: real kubelets, real pods, real packets.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		println("e2e: run as root: network namespaces need it")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// up boots a lab for a test and takes it down at its end. What the lab's
// processes logged is copied to $E2E_LOGS if that is set and the test failed.
func up(t *testing.T, c fixture.Config) *fixture.Mesh {
	t.Helper()
	c.Fresh = true
	c.Out = t.Output()
	m, err := fixture.Up(t.Context(), c)
	t.Cleanup(func() {
		if t.Failed() && m != nil {
			dump(t, m)
		}
		if os.Getenv("E2E_KEEP") != "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lab.Down(ctx, "", c.Name); err != nil {
			t.Errorf("take lab down: %v", err)
		}
	})
	must(t, err)
	m.Out = t.Output()
	return m
}

// dump prints what helps to understand a failure.
func dump(t *testing.T, m *fixture.Mesh) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range m.Clusters {
		out, err := m.CLI(ctx, "status", "--context", c.Name)
		t.Logf("status of %s (%v):\n%s", c.Name, err, out)
		for _, n := range c.Nodes {
			out, _ := n.Exec(ctx, "sh", "-c", "kubectl get pods -A -o wide --field-selector spec.nodeName="+n.Name+
				"; for f in /var/log/pods/clustermesh-system_*/*/*.log; do echo \"== $f\"; tail -n 40 $f; done; ip route show table 7473; ip -6 route show table 7473")
			t.Logf("node %s:\n%s", n.Name, out)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok returns nil.
func eventually(t *testing.T, within time.Duration, ok func() error) {
	t.Helper()
	if err := fixture.Eventually(t.Context(), within, ok); err != nil {
		t.Fatal(err)
	}
}

// reachAll checks every ordered pair of pods by every family, TCP and UDP, with
// the source address preserved.
func reachAll(t *testing.T, m *fixture.Mesh, pods []fixture.Pod) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(6)
	for _, from := range pods {
		for _, to := range pods {
			if from != to {
				g.Go(func() error { return reach(t, m, from, to) })
			}
		}
	}
	must(t, g.Wait())
}

func reach(t *testing.T, m *fixture.Mesh, from, to fixture.Pod) error {
	exchanges, err := m.Reach(t.Context(), from, to)
	if err != nil {
		return fmt.Errorf("%s to %s: %w", from, to, err)
	}
	want := 2 // the two nodes and nobody else
	if from.Node == to.Node {
		want = 1
	}
	for _, e := range exchanges {
		if e.Server.Hops != want || e.Hops != want {
			return fmt.Errorf("%s to %s: %d hops there and %d back, want %d: a gateway is in the path", from, to, e.Server.Hops, e.Hops, want)
		}
	}
	return nil
}

func node(t *testing.T, m *fixture.Mesh, name string) *lab.Node {
	t.Helper()
	cluster, _, _ := strings.Cut(name, "-")
	c, err := m.Cluster(cluster)
	must(t, err)
	n, err := c.Node(name)
	must(t, err)
	return n
}

// sh runs a shell line on a node.
func sh(t *testing.T, n *lab.Node, line string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "sh", "-c", line)
	if err != nil {
		t.Fatalf("%s# %s: %v\n%s", n.Name, line, err, out)
	}
	return strings.TrimSpace(out)
}

// routes is how many routes to other nodes' pod CIDRs a node holds.
func routes(t *testing.T, n *lab.Node) string {
	t.Helper()
	return sh(t, n, "(ip route show table 7473; ip -6 route show table 7473) | grep ' via ' | sort")
}

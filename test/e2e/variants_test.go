package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// TestVariants: two one-node clusters that only a router joins, which knows no
// pod; so packets between them are encapsulated. Addresses come from the
// cluster pool, over one family or both.
func TestVariants(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stack lab.Stack
		pool  bool
	}{
		{"dual stack, cluster pool", lab.Dual, true},
		{"IPv6 only", lab.IPv6, false},
		{"IPv4 only", lab.IPv4, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := up(t, fixture.Config{Config: lab.Config{
				Name: "e2evar", Fabric: lab.Routed, Stack: tt.stack, NoNodeCIDRs: tt.pool,
				Clusters: []lab.ClusterConfig{{Name: "west", Nodes: 1}, {Name: "east", Nodes: 1}},
			}})
			var set []string
			if tt.pool {
				set = []string{"ipam.mode=cluster-pool"}
			}
			must(t, m.InstallAll(t.Context(), set...))
			must(t, m.Connect(t.Context(), "west", "east"))
			pods, err := m.Probes(t.Context())
			must(t, err)
			eventually(t, 20*time.Second, func() error { _, err := m.Reach(t.Context(), pods[0], pods[1]); return err })
			reachAll(t, m, pods)
			n := node(t, m, "west-n1")
			if got := routes(t, n); !strings.Contains(got, "encap ip") || strings.Contains(got, "dev eth0") {
				t.Errorf("routes are not through the tunnel:\n%s", got)
			}
			nothingDropped(t, n)
			flows, watch := startFlows(t, m, [][2]fixture.Pod{{pods[0], pods[1]}}), watchRoutes(t, n)
			killAndWait(t, n, "clustermesh-agent", agentReady(t, n)) // N5, through the tunnel
			flows.check(t)
			watch.check(t)
		})
	}
}

// TestReplicas: two mesh API servers, which peers reach by a port of any node.
// Either may die; the other goes on for both. Then by a load balancer, which is
// the product's own; and a cluster with the same pod CIDRs is not let in.
func TestReplicas(t *testing.T) {
	m := up(t, fixture.Config{Config: lab.Config{Name: "e2erep", Stack: lab.IPv4,
		Clusters: []lab.ClusterConfig{{Name: "west", Nodes: 2}, {Name: "east", Nodes: 1},
			{Name: "twin", Nodes: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.11.0.0/16")}}}}})
	must(t, m.Install(t.Context(), "west", "apiserver.exposure=NodePort", "pods.apiserver.replicas=2"))
	must(t, m.Install(t.Context(), "east", "apiserver.exposure=NodePort"))
	must(t, m.Install(t.Context(), "twin"))
	must(t, m.Connect(t.Context(), "west", "east"))
	pods, err := m.Probes(t.Context())
	must(t, err)
	pods = pods[:3] // not twin's
	eventually(t, 20*time.Second, func() error { _, err := m.Reach(t.Context(), pods[0], pods[2]); return err })
	reachAll(t, m, pods)
	s := &suite{m: m}
	flows := startFlows(t, m, [][2]fixture.Pod{{pods[0], pods[2]}, {pods[2], pods[1]}})
	west, err := m.Cluster("west")
	must(t, err)
	for _, n := range west.Nodes {
		if len(n.PIDs("clustermesh-apiserver")) != 1 {
			t.Fatalf("%s runs %d API servers, want 1", n.Name, len(n.PIDs("clustermesh-apiserver")))
		}
		must(t, n.Kill(t.Context(), "clustermesh-apiserver"))
		s.waitSynced(t, "west", "east")
		eventually(t, time.Minute, func() error {
			if len(n.PIDs("clustermesh-apiserver")) != 1 {
				return fmt.Errorf("the API server on %s has not come back", n.Name)
			}
			return nil
		})
		must(t, west.WaitReady(t.Context(), time.Minute))
	}
	flows.check(t)
	reachAll(t, m, pods)
	t.Run("twin", func(t *testing.T) { s.twin(t) })
	t.Run("load balancer", func(t *testing.T) { s.balanced(t, pods) })
}

// twin: connect refuses a cluster with the same pod CIDRs, and changes nothing.
func (s *suite) twin(t *testing.T) {
	west, err := s.m.Cluster("west")
	must(t, err)
	peers := func() string {
		out, err := west.Kubectl(t.Context(), "get", "peers.clustermesh.io", "-o", "yaml")
		must(t, err)
		return out
	}
	before := peers()
	err = s.m.Connect(t.Context(), "west", "twin")
	if err == nil || !strings.Contains(err.Error(), "10.11.0.0/16") || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("connect: %v; want a refusal that names the CIDR", err)
	}
	if after := peers(); strings.Contains(after, "name: twin") || strings.Count(after, "kind: Peer") != strings.Count(before, "kind: Peer") {
		t.Errorf("connect left this:\n%s", after)
	}
}

// balanced: the mesh API server is reached by an address out of a pool.
func (s *suite) balanced(t *testing.T, pods []fixture.Pod) {
	west, err := s.m.Cluster("west")
	must(t, err)
	must(t, west.Apply(t.Context(), "apiVersion: clustermesh.io/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: lan}\nspec: {cidrs: [172.18.201.0/28]}\n"))
	_, err = s.m.CLI(t.Context(), "disconnect", "--context", "west", "--destination-context", "east")
	must(t, err)
	_, err = s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "apiserver.exposure=LoadBalancer")
	must(t, err)
	must(t, s.m.Connect(t.Context(), "west", "east"))
	s.waitSynced(t, "west", "east")
	east, err := s.m.Cluster("east")
	must(t, err)
	out, err := east.Kubectl(t.Context(), "get", "peers.clustermesh.io", "west", "-o", "jsonpath={.spec.endpoints}")
	if err != nil || !strings.Contains(out, "172.18.201.") || strings.Contains(out, ",") {
		t.Errorf("east dials west at %s (%v), want the address of the load balancer and nothing else", out, err)
	}
	eventually(t, 20*time.Second, func() error { _, err := s.m.Reach(t.Context(), pods[0], pods[2]); return err })
}

// nothingDropped: good traffic counts as no drop of the tunnel check. What it
// does drop is shown by TestDecapsulation in pkg/datapath.
func nothingDropped(t *testing.T, n *lab.Node) {
	t.Helper()
	got := sh(t, n, "nft list counters table inet clustermesh | grep -A1 'counter drop_decap' | grep packets | grep -v 'packets 0 bytes 0' || true")
	if got != "" {
		t.Errorf("good traffic was counted as dropped:\n%s", sh(t, n, "nft list counters table inet clustermesh"))
	}
}

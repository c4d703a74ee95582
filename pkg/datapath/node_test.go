package datapath_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

func hw(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
func ipOf(s string) net.IP         { return net.ParseIP(s) }
func netOf(s string) *net.IPNet    { _, n, _ := net.ParseCIDR(s); return n }

// targets are one agent's hands on the kernel of its node.
type targets struct {
	tunnels    *link.Tunnels
	sysctls    *link.Sysctls
	routes     *route.Routes
	rules      *route.Rules
	neighbours *route.Neighbours
	filter     *nft.Target
}

func newTargets(t testing.TB, s nl.Space) *targets {
	x := &targets{link.NewTunnels(s), link.NewSysctls(s), route.NewRoutes(s), route.NewRules(s), route.NewNeighbours(s), nft.New(s)}
	t.Cleanup(func() {
		x.tunnels.Close()
		x.routes.Close()
		x.rules.Close()
		x.neighbours.Close()
		x.filter.Close()
	})
	return x
}

// testNode is a node of the mesh.
type testNode struct {
	*targets
	space nl.Space
	row   model.Node
	pods  map[model.PodKey]model.Pod
}

// mesh is what all nodes know.
type mesh struct {
	nodes    []*testNode
	prefixes map[string][]netip.Prefix
	backend  model.Encap
	services bool
}

// join makes a node on the fabric. addrs are its addresses with length.
func (m *mesh) join(t testing.TB, f *fabric, cluster, name string, addrs []string, podCIDRs ...string) *testNode {
	t.Helper()
	n := &testNode{space: newSpace(t), pods: map[model.PodKey]model.Pod{}}
	f.plug(t, n.space, addrs...)
	n.targets = newTargets(t, n.space)
	n.row.Key = model.NodeKey{Cluster: cluster, Name: name}
	n.row.Encap = m.backend
	for _, a := range addrs {
		n.row.Internal = n.row.Internal.Add(netip.MustParsePrefix(a).Addr())
	}
	for _, c := range podCIDRs {
		n.row.PodCIDRs = n.row.PodCIDRs.Add(netip.MustParsePrefix(c))
	}
	m.nodes = append(m.nodes, n)
	return n
}

func (n *testNode) pod(t testing.TB, name string, ips ...string) *testPod {
	t.Helper()
	p := newPod(t, n.space, name, ips...)
	n.pods[p.row.Key] = p.row
	return p
}

func (m *mesh) input(t testing.TB, n *testNode) plan.Input {
	t.Helper()
	u, err := link.ReadUnderlay(t.Context(), n.space, n.row.Internal)
	must(t, err)
	in := plan.Input{Local: n.row.Key, Nodes: map[model.NodeKey]model.Node{}, Pods: n.pods, Mesh: m.prefixes,
		Backend: m.backend, Masquerade: true, Services: m.services, Underlay: u}
	for _, x := range m.nodes {
		in.Nodes[x.row.Key] = x.row
	}
	return in
}

// program makes every node as planned.
func (m *mesh) program(t testing.TB) {
	t.Helper()
	for _, n := range m.nodes {
		p := plan.Compute(m.input(t, n))
		for _, l := range p.Lines {
			t.Logf("%s: %s: %s", n.row.Key, l.Object, l.Message)
		}
		n.apply(t, p)
	}
}

// apply returns how many rows it had to touch. Settings do not count: they are
// looked at before they are written.
func (x *targets) apply(t testing.TB, p *plan.Plan) int {
	t.Helper()
	tunnels := converge(t, "tunnels", x.tunnels, p.Tunnels)
	converge(t, "sysctls", x.sysctls, p.Sysctls)
	return tunnels + converge(t, "nft", x.filter, p.Filter) +
		converge(t, "neighbours", x.neighbours, p.Neighbours) +
		converge(t, "routes", x.routes, p.Routes) +
		converge(t, "rules", x.rules, p.Rules)
}

// converge does what a loop does, and checks that the target then shows exactly
// what was wanted.
func converge[K, V comparable](t testing.TB, name string, target reconcile.Target[K, V], wanted map[K]V) int {
	t.Helper()
	set, del := delta(t, name, target, wanted)
	if len(set)+len(del) == 0 {
		return 0
	}
	for k, err := range target.Apply(context.Background(), set, del) {
		t.Fatalf("%s: apply %v: %v", name, k, err)
	}
	if set, del := delta(t, name, target, wanted); len(set)+len(del) > 0 {
		actual, _ := target.List(t.Context())
		k := slices.Collect(maps.Keys(set))
		if len(k) > 0 {
			t.Fatalf("%s: not as wanted after apply: %v: have %+v, want %+v", name, k[0], actual[k[0]], set[k[0]])
		}
		t.Fatalf("%s: too much after apply: %v", name, del)
	}
	return len(set) + len(del)
}

func delta[K, V comparable](t testing.TB, name string, target reconcile.Target[K, V], wanted map[K]V) (map[K]V, []K) {
	t.Helper()
	actual, err := target.List(t.Context())
	if err != nil {
		t.Fatalf("%s: list: %v", name, err)
	}
	return reconcile.Delta(actual, wanted)
}

// applyShuffled lets the targets act in a random order, as loops of their own
// would.
func (x *targets) applyShuffled(t testing.TB, p *plan.Plan) {
	t.Helper()
	steps := []func(){
		func() { converge(t, "nft", x.filter, p.Filter) },
		func() { converge(t, "tunnels", x.tunnels, p.Tunnels) },
		func() { converge(t, "neighbours", x.neighbours, p.Neighbours) },
		func() { converge(t, "routes", x.routes, p.Routes) },
		func() { converge(t, "rules", x.rules, p.Rules) },
	}
	for _, i := range rand.Perm(len(steps)) {
		steps[i]()
	}
}

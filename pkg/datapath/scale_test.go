package datapath_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// crowd adds n remote dual-stack nodes to the input.
func crowd(in plan.Input, n int) plan.Input {
	in.Nodes, in.Mesh = maps.Clone(in.Nodes), maps.Clone(in.Mesh)
	in.Mesh["far"] = prefixes("100.64.0.0/10", "fd64::/32")
	for i := range n {
		k := model.NodeKey{Cluster: "far", Name: fmt.Sprintf("n%d", i)}
		hi, lo := byte(i>>8), byte(i)
		in.Nodes[k] = model.Node{Key: k, Encap: model.EncapAuto,
			Internal: model.Addrs{V4: netip.AddrFrom4([4]byte{172, 16 + hi>>7, hi, lo}),
				V6: netip.AddrFrom16([16]byte{0xfd, 0x99, 14: hi, 15: lo})},
			PodCIDRs: model.Prefixes{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + hi>>2&63, hi<<6 | lo>>2, lo << 6}), 26),
				V6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x64, 6: hi, 7: lo}), 64)}}
	}
	return in
}

// TestScale: 5,000 remote nodes, each with both families, loaded at once, and
// one node changing its address while they are there. The figures are printed;
// only CPU time is
// checked, since other work shares the machine.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("loads 5,000 nodes")
	}
	m, _ := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
	n := m.nodes[0]
	in := crowd(m.input(t, n), 5000)
	var p *plan.Plan
	timed(t, "plan", time.Second, func() { p = plan.Compute(in) })
	t.Logf("%d routes, %d neighbours, %d filter rows, %d lines", len(p.Routes), len(p.Neighbours), len(p.Filter), len(p.Lines))
	load(t, "neighbours", n.neighbours, p.Neighbours)
	load(t, "routes", n.routes, p.Routes)
	load(t, "nft", n.filter, p.Filter)

	var planner plan.Planner
	planner.Plan(in)
	took, before := map[string][]time.Duration{}, cpu(t)
	for i := range 40 {
		in.Nodes = maps.Clone(in.Nodes)
		k := model.NodeKey{Cluster: "far", Name: fmt.Sprintf("n%d", 37*i)}
		moved := in.Nodes[k]
		moved.Internal.V4 = netip.AddrFrom4([4]byte{172, 31, 1, byte(i)})
		in.Nodes[k] = moved
		start := time.Now()
		next := planner.Plan(in)
		took["plan"] = append(took["plan"], time.Since(start))
		took["neighbours"] = append(took["neighbours"], change(t, n.neighbours, next.Patch.Neighbours))
		took["routes"] = append(took["routes"], change(t, n.routes, next.Patch.Routes))
		took["nft"] = append(took["nft"], change(t, n.filter, next.Patch.Filter))
		p = next
	}
	t.Logf("40 changes: %v of CPU", cpu(t)-before)
	for what, list := range took {
		slices.Sort(list)
		t.Logf("one node changed: %s p50 %v, worst %v", what, list[len(list)/2], list[len(list)-1])
	}
	if !n.asPlanned(t, p) {
		t.Error("not as planned in the end")
	}
}

func timed(t testing.TB, what string, limit time.Duration, f func()) {
	t.Helper()
	start, before := time.Now(), cpu(t)
	f()
	took, used := time.Since(start), cpu(t)-before
	t.Logf("%s: %v, %v of CPU", what, took, used)
	if used > limit {
		t.Errorf("%s used %v of CPU, want at most %v", what, used, limit)
	}
}

// cpu is what the process has used, which other work on the machine does not
// change as much as it changes the clock.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func load[K, V comparable](t testing.TB, name string, target reconcile.Target[K, V], wanted map[K]V) {
	t.Helper()
	set, del := delta(t, name, target, wanted)
	timed(t, fmt.Sprintf("%s: apply %d rows", name, len(set)), time.Second, func() {
		for k, err := range target.Apply(t.Context(), set, del) {
			t.Fatalf("%s: apply %v: %v", name, k, err)
		}
	})
	timed(t, name+": list", time.Second, func() { set, del = delta(t, name, target, wanted) })
	if len(set)+len(del) > 0 {
		t.Errorf("%s: %d to set, %d to delete after all was applied", name, len(set), len(del))
	}
}

// change applies what differs, and returns how long applying took.
func change[K, V comparable](t testing.TB, target reconcile.Target[K, V], c plan.Changes[K, V]) time.Duration {
	t.Helper()
	start := time.Now()
	put(t, target, c.Set, c.Del)
	return time.Since(start)
}

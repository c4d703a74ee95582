package datapath_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// partially does what the loops do before every source has reported: rows are
// set, none is deleted.
func (x *targets) partially(t testing.TB, p *plan.Plan) {
	t.Helper()
	setOnly(t, "nft", x.filter, p.Filter)
	setOnly(t, "tunnels", x.tunnels, p.Tunnels)
	setOnly(t, "neighbours", x.neighbours, p.Neighbours)
	setOnly(t, "routes", x.routes, p.Routes)
	setOnly(t, "rules", x.rules, p.Rules)
}

func setOnly[K, V comparable](t testing.TB, name string, target reconcile.Target[K, V], wanted map[K]V) {
	t.Helper()
	set, _ := delta(t, name, target, wanted)
	for k, err := range target.Apply(t.Context(), set, nil) {
		t.Fatalf("%s: apply %v: %v", name, k, err)
	}
}

// TestRestartBeforePeersReport: an agent that starts while no other node has
// been reported breaks nothing of what it finds (invariants N5, R2): the lengths
// of pod prefixes are in the rules, which are one row and so are replaced.
func TestRestartBeforePeersReport(t *testing.T) {
	m, pods := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
	// A cluster of one node may use no more than that node's prefixes.
	m.prefixes["east"] = m.nodes[0].row.PodCIDRs.All()
	m.program(t)
	n := m.nodes[1]
	held, err := nft.Held(n.space)
	must(t, err)
	in := m.input(t, n)
	in.Nodes = map[model.NodeKey]model.Node{n.row.Key: n.row}
	in.Held = held

	stop := stream(t, pods[0], pods[1])
	time.Sleep(50 * time.Millisecond)
	fresh := newTargets(t, n.space)
	fresh.partially(t, plan.Compute(in))
	time.Sleep(50 * time.Millisecond)
	if sent, got := stop(); sent != got || sent == 0 {
		t.Errorf("%d packets sent, %d arrived", sent, got)
	}

	fresh.apply(t, plan.Compute(m.input(t, n))) // all have reported
	if after, err := nft.Held(n.space); err != nil || after != held {
		t.Errorf("rules are for %+v, want %+v (%v)", after, held, err)
	}
}

// TestRangesBeforePeersReport: a Peer that was widened or narrowed while no
// agent ran gets its range at once, although the old one may not be deleted
// yet. The kernel refuses ranges that overlap.
func TestRangesBeforePeersReport(t *testing.T) {
	rng := func(from, to string) plan.FilterKey {
		return plan.FilterKey{Set: plan.Mesh4, Range: plan.Range{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to)}}
	}
	other := rng("172.16.0.0", "172.16.255.255")
	for _, c := range []struct {
		name        string
		before, now plan.FilterKey
	}{
		{"wider at the end", rng("10.2.0.0", "10.2.255.255"), rng("10.2.0.0", "10.3.255.255")},
		{"wider at the start", rng("10.3.0.0", "10.3.255.255"), rng("10.2.0.0", "10.3.255.255")},
		{"wider on both sides", rng("10.3.0.0", "10.3.255.255"), rng("10.0.0.0", "10.255.255.255")},
		{"narrower at the end", rng("10.2.0.0", "10.3.255.255"), rng("10.2.0.0", "10.2.255.255")},
		{"narrower inside", rng("10.0.0.0", "10.255.255.255"), rng("10.2.0.0", "10.2.255.255")},
		{"up to the last address", rng("240.0.0.0", "250.255.255.255"), rng("240.0.0.0", "255.255.255.255")},
	} {
		t.Run(c.name, func(t *testing.T) {
			filter := newTargets(t, newSpace(t)).filter
			put(t, filter, map[plan.FilterKey]plan.FilterRow{{}: {}, c.before: {}, other: {}}, nil)
			put(t, filter, map[plan.FilterKey]plan.FilterRow{c.now: {}}, nil)
			shows(t, filter, map[plan.FilterKey]plan.FilterRow{{}: {}, c.now: {}, other: {}})
			put(t, filter, nil, slices.Clone([]plan.FilterKey{c.before, other})) // all have reported
			shows(t, filter, map[plan.FilterKey]plan.FilterRow{{}: {}, c.now: {}})
		})
	}
}

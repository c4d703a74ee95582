package datapath_test

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// crowded is the input of a node that knows 5,000 others.
func crowded() plan.Input {
	key := model.NodeKey{Cluster: "east", Name: "e1"}
	return crowd(plan.Input{Local: key, Backend: model.EncapVXLAN, Mesh: map[string][]netip.Prefix{}, Nodes: map[model.NodeKey]model.Node{key: {Key: key,
		Internal: model.Addrs{V4: prefixes("192.0.2.1/24")[0].Addr(), V6: prefixes("2001:db8::1/64")[0].Addr()},
		PodCIDRs: model.Prefixes{V4: prefixes("10.1.3.0/24")[0], V6: prefixes("fd00:1:0:3::/64")[0]}}}}, 5000)
}

func BenchmarkPlan5000(b *testing.B) {
	in := crowded()
	b.ReportAllocs()
	for b.Loop() {
		plan.Compute(in)
	}
}

// BenchmarkOneNodeChanges is what a planner does when one of 5,000 nodes changes.
func BenchmarkOneNodeChanges(b *testing.B) {
	key := model.NodeKey{Cluster: "far", Name: "n77"}
	in := crowded()
	var planner plan.Planner
	planner.Plan(in)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		in.Nodes = maps.Clone(in.Nodes)
		n := in.Nodes[key]
		n.Internal.V4 = netip.AddrFrom4([4]byte{172, 31, 1, byte(i)})
		in.Nodes[key] = n
		planner.Plan(in)
	}
}

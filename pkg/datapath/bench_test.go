package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

func BenchmarkPlan5000(b *testing.B) {
	key := model.NodeKey{Cluster: "east", Name: "e1"}
	in := crowd(plan.Input{Local: key, Backend: model.EncapVXLAN, Mesh: map[string][]netip.Prefix{}, Nodes: map[model.NodeKey]model.Node{key: {Key: key,
		Internal: model.Addrs{V4: prefixes("192.0.2.1/24")[0].Addr(), V6: prefixes("2001:db8::1/64")[0].Addr()},
		PodCIDRs: model.Prefixes{V4: prefixes("10.1.3.0/24")[0], V6: prefixes("fd00:1:0:3::/64")[0]}}}}, 5000)
	b.ReportAllocs()
	for b.Loop() {
		plan.Compute(in)
	}
}

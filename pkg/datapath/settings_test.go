package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// TestForwardingKeepsRouterAdvertisements: a node that has its address or route
// from router advertisements goes on taking them when it begins to forward.
func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	s := newSpace(t)
	f := newFabric(t)
	f.plug(t, s, "192.0.2.1/24")
	must(t, s.WriteSysctl("net/ipv6/conf/eth0/accept_ra", "1"))
	target := link.NewSysctls(s)
	wanted := map[string]string{"net/ipv6/conf/all/forwarding": "1", "net/ipv4/ip_forward": "1"}
	converge(t, "sysctls", target, wanted)
	for path, want := range map[string]string{"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/eth0/forwarding": "1", "net/ipv4/conf/eth0/forwarding": "1"} {
		if got, err := s.ReadSysctl(path); got != want || err != nil {
			t.Errorf("%s is %q (%v), want %q", path, got, err, want)
		}
	}
	failed := target.Apply(t.Context(), map[string]string{"net/ipv4/conf/gone/rp_filter": "2"}, nil)
	if len(failed) != 1 {
		t.Errorf("setting of a missing device: %v, want one failure", failed)
	}
}

func TestReadUnderlay(t *testing.T) {
	m, _ := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
	n := m.nodes[0]
	addr(t, n.space, "lo", "198.51.100.1/32")
	ip(t, n.space, "link", "set", "eth0", "mtu", "1400")
	got, err := link.ReadUnderlay(t.Context(), n.space, n.row.Internal)
	must(t, err)
	want := plan.Underlay{MTU: 1400, Addrs: []plan.LocalAddr{
		{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Dev: "lo"},
		{Prefix: netip.MustParsePrefix("192.0.2.1/24"), Dev: "eth0"},
		{Prefix: netip.MustParsePrefix("2001:db8::1/64"), Dev: "eth0"}}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	onLo, err := link.ReadUnderlay(t.Context(), n.space, model.Addrs{V4: netip.MustParseAddr("198.51.100.1")})
	must(t, err)
	if onLo.MTU != 1400 {
		t.Errorf("node address on lo: MTU %d, want that of eth0", onLo.MTU)
	}
}

package plan

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

func TestAnnounce(t *testing.T) {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	underlay := Underlay{Addrs: []LocalAddr{{p("192.0.2.1/24"), "eth0"}, {p("192.0.2.65/26"), "eth1"}, {p("2001:db8::1/64"), "eth0"}, {p("198.51.100.1/24"), "lo"}, {p("203.0.113.1/32"), "eth0"}}}
	at := func(node, subnet string) lbpool.Elected {
		e := lbpool.Elected{Node: node, Pool: "pool"}
		if subnet != "" {
			e.Subnet = p(subnet)
		}
		return e
	}
	sources := model.Addrs{V4: a("192.0.2.1"), V6: a("2001:db8::1")}
	type want struct {
		Proxies []NeighbourKey
		Routes  map[string]Route
		Sysctls map[string]string
		Sets    []FilterKey
		Lines   map[string]status.Level
	}
	ndp := map[string]string{"net/ipv6/neigh/eth0/proxy_delay": "0", "net/ipv6/conf/eth0/proxy_ndp": "1"}
	for name, c := range map[string]struct {
		addr    string
		elected lbpool.Elected
		sources model.Addrs
		want    want
	}{
		"IPv4": {"192.0.2.10", at("me", "192.0.2.0/24"), sources, want{
			[]NeighbourKey{{"eth0", a("192.0.2.10")}}, map[string]Route{"192.0.2.10/32": {Kind: Unicast, Dev: "lo", Src: sources.V4, MTU: 1400}},
			map[string]string{"net/ipv4/neigh/eth0/proxy_delay": "0"}, []FilterKey{{Set: Announced4, Addr: a("192.0.2.10")}}, map[string]status.Level{"": status.OK}}},
		"on two devices": {"192.0.2.70", at("me", "192.0.2.64/26"), sources, want{
			[]NeighbourKey{{"eth0", a("192.0.2.70")}, {"eth1", a("192.0.2.70")}}, map[string]Route{"192.0.2.70/32": {Kind: Unicast, Dev: "lo", Src: sources.V4, MTU: 1400}},
			map[string]string{"net/ipv4/neigh/eth0/proxy_delay": "0", "net/ipv4/neigh/eth1/proxy_delay": "0"}, []FilterKey{{Set: Announced4, Addr: a("192.0.2.70")}}, map[string]status.Level{"": status.OK}}},
		"IPv6": {"2001:db8::10", at("me", "2001:db8::/64"), sources, want{
			[]NeighbourKey{{"eth0", a("2001:db8::10")}}, map[string]Route{"2001:db8::10/128": {Kind: Unicast, Dev: "eth0", Src: sources.V6, MTU: 1400}},
			ndp, []FilterKey{{Set: Announced6, Addr: a("2001:db8::10")}}, map[string]status.Level{"": status.OK}}},
		"a source that is not this node's": {"2001:db8::10", at("me", "2001:db8::/64"), model.Addrs{V6: a("2001:db8:9::1")}, want{
			[]NeighbourKey{{"eth0", a("2001:db8::10")}}, map[string]Route{"2001:db8::10/128": {Kind: Unicast, Dev: "eth0", MTU: 1400}},
			ndp, []FilterKey{{Set: Announced6, Addr: a("2001:db8::10")}}, map[string]status.Level{"": status.OK}}},
		"another node":  {"192.0.2.10", at("other", "192.0.2.0/24"), sources, want{}},
		"nobody":        {"192.0.2.10", at("", "192.0.2.0/24"), sources, want{Lines: map[string]status.Level{"pool (nobody)": status.Info}}},
		"in no subnet":  {"10.9.9.9", at("", ""), sources, want{Lines: map[string]status.Level{"pool": status.Info}}},
		"only on lo":    {"198.51.100.9", at("", ""), sources, want{Lines: map[string]status.Level{"pool": status.Info}}},
		"a single host": {"203.0.113.1", at("", ""), sources, want{Lines: map[string]status.Level{"pool": status.Info}}},
	} {
		t.Run(name, func(t *testing.T) {
			out := Announce(AnnounceInput{Node: "me", Elected: map[netip.Addr]lbpool.Elected{a(c.addr): c.elected}, Underlay: underlay, Sources: c.sources, MTU: 1400})
			got := want{Proxies: slices.SortedFunc(maps.Keys(out.Proxies), func(x, y NeighbourKey) int { return strings.Compare(x.Dev, y.Dev) }),
				Routes: map[string]Route{}, Sysctls: out.Sysctls, Sets: slices.Collect(maps.Keys(out.Filter)), Lines: map[string]status.Level{}}
			for k, r := range out.Routes {
				got.Routes[k.String()] = r
				if !k.Announcing(map[string][]netip.Prefix{"us": {p("10.1.0.0/16")}}) {
					t.Errorf("%v is not known as ours", k)
				}
			}
			for k := range out.Filter {
				if !k.Announcing() {
					t.Errorf("%v is not known as ours", k)
				}
			}
			for _, l := range out.Lines {
				got.Lines[l.Object] = l.Level
			}
			if d := cmp.Diff(c.want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y }),
				cmpopts.EquateEmpty(),
				cmp.Comparer(func(x, y Route) bool { return x == y }), cmp.Comparer(func(x, y FilterKey) bool { return x == y })); d != "" {
				t.Error(d)
			}
		})
	}
	pod := RouteKey{Dst: p("10.1.0.7/32")}
	if pod.Announcing(map[string][]netip.Prefix{"us": {p("10.1.0.0/16")}}) {
		t.Error("a pod's route was taken for one of ours")
	}
}

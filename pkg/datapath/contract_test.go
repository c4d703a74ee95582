package datapath_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// contract checks what reconcile.Target promises. one and two are different
// rows for the same keys; the suite runs alike on the fake and on the kernel.
func contract[K, V comparable](t *testing.T, fresh func(t *testing.T) reconcile.Target[K, V], one, two map[K]V) {
	for name, make := range map[string]func(t *testing.T) reconcile.Target[K, V]{
		"fake":   func(*testing.T) reconcile.Target[K, V] { return reconcile.NewFake[K, V](nil) },
		"kernel": fresh,
	} {
		t.Run(name, func(t *testing.T) {
			target := make(t)
			shows(t, target, nil)
			put(t, target, one, nil)
			shows(t, target, one)
			put(t, target, one, nil) // again
			shows(t, target, one)
			put(t, target, two, nil) // other values in place
			shows(t, target, two)
			keys := slices.Collect(maps.Keys(two))
			put(t, target, nil, keys[:1])
			rest := maps.Clone(two)
			delete(rest, keys[0])
			shows(t, target, rest)
			put(t, target, map[K]V{keys[0]: one[keys[0]]}, keys[1:]) // set and delete at once
			shows(t, target, map[K]V{keys[0]: one[keys[0]]})
			put(t, target, nil, keys[:1])
			shows(t, target, nil)
		})
	}
}

func shows[K, V comparable](t *testing.T, target reconcile.Target[K, V], want map[K]V) {
	t.Helper()
	got, err := target.List(t.Context())
	must(t, err)
	if !maps.Equal(got, want) {
		t.Fatalf("target shows %+v\nwant %+v", got, want)
	}
}

func put[K, V comparable](t testing.TB, target reconcile.Target[K, V], set map[K]V, del []K) {
	t.Helper()
	for k, err := range target.Apply(t.Context(), set, del) {
		t.Fatalf("apply %v: %v", k, err)
	}
}

// bare is a namespace with the devices that rows refer to.
func bare(t *testing.T) nl.Space {
	s := newSpace(t)
	newFabric(t).plug(t, s, "192.0.2.1/24", "2001:db8::1/64")
	veth(t, s, "cm0123456789a", newSpace(t), "eth0")
	must(t, s.WriteSysctl("net/ipv4/ip_forward", "1"))
	x := newTargets(t, s)
	put(t, x.tunnels, map[string]plan.Tunnel{plan.TunnelName: tunnelRow(1450, "10.1.3.1", "fd00::1")}, nil)
	return s
}

func tunnelRow(mtu int, v4, v6 string) plan.Tunnel {
	return plan.Tunnel{Port: 8472, MTU: mtu, MAC: model.MAC{2, 1, 2, 3, 4, byte(mtu)}, Addrs: model.Addrs{V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}}
}

func TestContractRoutes(t *testing.T) {
	a := netip.MustParseAddr
	key := func(s string) plan.RouteKey { return plan.RouteKey{Dst: netip.MustParsePrefix(s)} }
	behind := func(s string) plan.RouteKey { return plan.RouteKey{Dst: netip.MustParsePrefix(s), Fallback: true} }
	direct4 := plan.Route{Kind: plan.Unicast, Dev: "eth0", Gateway: a("192.0.2.7"), Src: a("192.0.2.1"), MTU: 1400}
	direct6 := plan.Route{Kind: plan.Unicast, Dev: "eth0", Gateway: a("2001:db8::7"), Src: a("2001:db8::1")}
	refused := plan.Route{Kind: plan.Unreachable}
	tunnel := func(outer, src string) plan.Route {
		return plan.Route{Kind: plan.Unicast, Dev: plan.TunnelName, Gateway: a("fe80::7"), OnLink: true, MTU: 1430,
			Encap: plan.Encap{VNI: 7473, Dst: a(outer), Src: a(src)}}
	}
	noSource := tunnel("192.0.2.7", "192.0.2.1")
	noSource.Encap.Src = netip.Addr{}
	pod := plan.Route{Kind: plan.Unicast, Dev: "cm0123456789a", Src: a("192.0.2.1")}
	one := map[plan.RouteKey]plan.Route{
		key("10.0.0.0/8"): refused, key("10.2.0.0/24"): direct4, key("10.3.0.0/24"): tunnel("192.0.2.7", "192.0.2.1"),
		key("10.4.0.0/24"): tunnel("2001:db8::7", "2001:db8::1"), key("10.5.0.0/24"): noSource, key("10.1.3.9/32"): pod, key("0.0.0.0/0"): refused,
		key("fd00::/16"): refused, key("fd00:2::/64"): direct6, key("fd00:3::/64"): tunnel("192.0.2.7", "192.0.2.1"),
		key("fd00:4::/64"): tunnel("2001:db8::7", "2001:db8::1"), key("fd00:1::9/128"): {Kind: plan.Unicast, Dev: "cm0123456789a"}, key("::/0"): refused,
		behind("10.2.0.0/24"): refused, behind("10.6.0.0/16"): refused, behind("fd00:2::/64"): refused, behind("fd00:6::/48"): refused,
	}
	via6 := direct4
	via6.Gateway = a("2001:db8::7")
	two := map[plan.RouteKey]plan.Route{
		key("10.0.0.0/8"): direct4, key("10.2.0.0/24"): via6, key("10.3.0.0/24"): tunnel("192.0.2.8", "192.0.2.1"),
		key("10.4.0.0/24"): tunnel("192.0.2.7", "192.0.2.1"), key("10.5.0.0/24"): refused, key("10.1.3.9/32"): refused, key("0.0.0.0/0"): pod,
		key("fd00::/16"): direct6, key("fd00:2::/64"): tunnel("192.0.2.7", "192.0.2.1"), key("fd00:3::/64"): refused,
		key("fd00:4::/64"): tunnel("2001:db8::8", "2001:db8::1"), key("fd00:1::9/128"): refused, key("::/0"): direct6,
		behind("10.2.0.0/24"): direct4, behind("10.6.0.0/16"): direct4, behind("fd00:2::/64"): direct6, behind("fd00:6::/48"): direct6,
	}
	contract(t, func(t *testing.T) reconcile.Target[plan.RouteKey, plan.Route] { return newTargets(t, bare(t)).routes }, one, two)
}

func TestContractNeighbours(t *testing.T) {
	k := func(dev, ip string) plan.NeighbourKey {
		return plan.NeighbourKey{Dev: dev, IP: netip.MustParseAddr(ip)}
	}
	one, two := map[plan.NeighbourKey]plan.Neighbour{}, map[plan.NeighbourKey]plan.Neighbour{}
	for i, key := range []plan.NeighbourKey{k("cm0123456789a", "10.1.3.9"), k("cm0123456789a", "fd00::9"), k(plan.TunnelName, "fe80::7")} {
		one[key], two[key] = plan.Neighbour{MAC: model.MAC{2, 0, byte(i)}}, plan.Neighbour{MAC: model.MAC{2, 1, byte(i)}}
	}
	contract(t, func(t *testing.T) reconcile.Target[plan.NeighbourKey, plan.Neighbour] {
		return newTargets(t, bare(t)).neighbours
	}, one, two)
}

func TestContractRules(t *testing.T) {
	rows := map[plan.RuleKey]plan.Rule{}
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		rows[plan.RuleKey{Family: f}] = plan.Rule{Priority: plan.RulePriority, Table: plan.Table}
	}
	contract(t, func(t *testing.T) reconcile.Target[plan.RuleKey, plan.Rule] { return newTargets(t, bare(t)).rules }, rows, rows)
}

func TestContractTunnels(t *testing.T) {
	one := map[string]plan.Tunnel{plan.TunnelName: tunnelRow(1450, "10.1.3.1", "fd00::1")}
	two := map[string]plan.Tunnel{plan.TunnelName: tunnelRow(1430, "10.1.4.1", "fd00::1")}
	port := one[plan.TunnelName]
	port.Port, port.Addrs.V6 = 4789, netip.Addr{}
	fresh := func(t *testing.T) reconcile.Target[string, plan.Tunnel] { return newTargets(t, newSpace(t)).tunnels }
	contract(t, fresh, one, two)
	contract(t, fresh, two, map[string]plan.Tunnel{plan.TunnelName: port})
}

// TestTunnelInPlaceOfAnother: a device of that name that cannot be changed into
// ours is replaced.
func TestTunnelInPlaceOfAnother(t *testing.T) {
	row := map[string]plan.Tunnel{plan.TunnelName: tunnelRow(1450, "10.1.3.1", "fd00::1")}
	for _, args := range [][]string{
		{"type", "vxlan", "id", "5", "dstport", "4789"},
		{"type", "vxlan", "external", "dstport", "8472", "learning"},
		{"type", "bridge"},
	} {
		s := newSpace(t)
		ip(t, s, append([]string{"link", "add", plan.TunnelName}, args...)...)
		x := newTargets(t, s)
		if converge(t, "tunnels", x.tunnels, row) == 0 {
			t.Errorf("%v was taken for ours", args)
		}
	}
}

func TestContractFilter(t *testing.T) {
	a := netip.MustParseAddr
	rng := func(from, to string) plan.Range { return plan.Range{From: a(from), To: a(to)} }
	row := plan.FilterRow{Rules: plan.Rules{Tunnel: true, Port: 8472, VNI: 7473, Masquerade: true, Inner4: plan.Lengths{}.With(24).With(26), Inner6: plan.Lengths{}.With(64)}}
	one := map[plan.FilterKey]plan.FilterRow{
		{}: row,
		{Set: plan.Pods4, Dev: "cm0123456789a", Addr: a("10.1.3.9")}:                                       {},
		{Set: plan.Pods6, Dev: "cm0123456789a", Addr: a("fd00::9")}:                                        {},
		{Set: plan.Nodes4, Addr: a("192.0.2.7")}:                                                           {},
		{Set: plan.Nodes6, Addr: a("2001:db8::7")}:                                                         {},
		{Set: plan.Direct4, Addr: a("192.0.2.7")}:                                                          {},
		{Set: plan.Direct6, Addr: a("2001:db8::7")}:                                                        {},
		{Set: plan.Announced4, Addr: a("192.0.2.200")}:                                                     {},
		{Set: plan.Announced6, Addr: a("2001:db8::200")}:                                                   {},
		{Set: plan.Local4, Range: rng("10.1.3.0", "10.1.3.255")}:                                           {},
		{Set: plan.Local6, Range: rng("fd00::", "fd00::ffff")}:                                             {},
		{Set: plan.Mesh4, Range: rng("0.0.0.0", "10.1.3.255")}:                                             {},
		{Set: plan.Mesh4, Range: rng("10.1.5.0", "10.1.5.0")}:                                              {},
		{Set: plan.Mesh4, Range: rng("240.0.0.0", "255.255.255.255")}:                                      {},
		{Set: plan.Mesh6, Range: rng("fd00::", "fd00::ffff")}:                                              {},
		{Set: plan.Decap44, Addr: a("192.0.2.7"), Range: rng("10.2.0.0", "10.2.0.255")}:                    {},
		{Set: plan.Decap44, Addr: a("192.0.2.8"), Range: rng("10.2.1.64", "10.2.1.127")}:                   {},
		{Set: plan.Decap46, Addr: a("192.0.2.7"), Range: rng("fd00:2::", "fd00:2::ffff:ffff:ffff:ffff")}:   {},
		{Set: plan.Decap64, Addr: a("2001:db8::7"), Range: rng("10.2.0.0", "10.2.0.255")}:                  {},
		{Set: plan.Decap66, Addr: a("2001:db8::7"), Range: rng("fd00:2::", "fd00:2::ffff:ffff:ffff:ffff")}: {},
	}
	// Without the rules there is nothing that could hold elements, so this
	// target is checked step by step.
	for name, fresh := range map[string]func() reconcile.Target[plan.FilterKey, plan.FilterRow]{
		"fake": func() reconcile.Target[plan.FilterKey, plan.FilterRow] {
			return reconcile.NewFake[plan.FilterKey, plan.FilterRow](nil)
		},
		"kernel": func() reconcile.Target[plan.FilterKey, plan.FilterRow] { return newTargets(t, newSpace(t)).filter },
	} {
		t.Run(name, func(t *testing.T) {
			target := fresh()
			shows(t, target, nil)
			put(t, target, one, nil)
			shows(t, target, one)
			put(t, target, one, nil)
			shows(t, target, one)
			two := maps.Clone(one)
			two[plan.FilterKey{}] = plan.FilterRow{} // no tunnel, no masquerading; elements stay
			joined := plan.FilterKey{Set: plan.Mesh4, Range: rng("0.0.0.0", "10.1.5.0")}
			parts := []plan.FilterKey{{Set: plan.Mesh4, Range: rng("0.0.0.0", "10.1.3.255")}, {Set: plan.Mesh4, Range: rng("10.1.5.0", "10.1.5.0")}}
			two[joined] = plan.FilterRow{}
			delete(two, parts[0])
			delete(two, parts[1])
			put(t, target, map[plan.FilterKey]plan.FilterRow{{}: {}, joined: {}}, parts)
			shows(t, target, two)
			put(t, target, nil, slices.Collect(maps.Keys(two)))
			shows(t, target, nil)
		})
	}
}

// TestBadRowsFailAlone: what cannot be done is reported by row, and all else is
// done.
func TestBadRowsFailAlone(t *testing.T) {
	s := bare(t)
	x := newTargets(t, s)
	good, bad := plan.RouteKey{Dst: netip.MustParsePrefix("10.2.0.0/24")}, plan.RouteKey{Dst: netip.MustParsePrefix("10.3.0.0/24")}
	ugly := plan.RouteKey{Dst: netip.MustParsePrefix("10.4.0.0/24")}
	failed := x.routes.Apply(t.Context(), map[plan.RouteKey]plan.Route{
		good: {Kind: plan.Unreachable},
		bad:  {Kind: plan.Unicast, Dev: "cm-gone"},
		ugly: {Kind: plan.Unicast, Dev: "eth0", Gateway: netip.MustParseAddr("203.0.113.1")}, // not on-link
	}, nil)
	if len(failed) != 2 || failed[bad] == nil || failed[ugly] == nil {
		t.Errorf("failed: %v", failed)
	}
	shows(t, x.routes, map[plan.RouteKey]plan.Route{good: {Kind: plan.Unreachable}})

	put(t, x.filter, map[plan.FilterKey]plan.FilterRow{{}: {}}, nil)
	set := map[plan.FilterKey]plan.FilterRow{}
	for i := range 50 {
		set[plan.FilterKey{Set: plan.Nodes4, Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}] = plan.FilterRow{}
	}
	missing := plan.FilterKey{Set: plan.Nodes4, Addr: netip.MustParseAddr("203.0.113.1")}
	refused := x.filter.Apply(t.Context(), set, []plan.FilterKey{missing})
	if len(refused) != 1 || refused[missing] == nil {
		t.Errorf("failed: %v", refused)
	}
	set[plan.FilterKey{}] = plan.FilterRow{}
	shows(t, x.filter, set)
}

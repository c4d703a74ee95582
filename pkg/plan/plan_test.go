package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
)

func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	local = model.NodeKey{Cluster: "east", Name: "e1"}
	west  = model.NodeKey{Cluster: "west", Name: "w1"}
)

// base is a dual-stack node of cluster east, alone, with west as a peer.
func base() Input {
	return Input{
		Local: local,
		Nodes: map[model.NodeKey]model.Node{local: {Key: local,
			Internal: model.Addrs{V4: ip("192.0.2.1"), V6: ip("2001:db8::1")},
			PodCIDRs: model.Prefixes{V4: pfx("10.1.3.0/24"), V6: pfx("fd00:1:0:3::/64")}}},
		Pods:    map[model.PodKey]model.Pod{},
		Mesh:    map[string][]netip.Prefix{"east": {pfx("10.1.0.0/16"), pfx("fd00:1::/48")}, "west": {pfx("10.2.0.0/16"), pfx("fd00:2::/48")}},
		Backend: model.EncapAuto,
		Underlay: Underlay{MTU: 1500, Addrs: []LocalAddr{
			{pfx("192.0.2.1/24"), "eth0"}, {pfx("2001:db8::1/64"), "eth0"}, {pfx("198.51.100.1/32"), "lo"}}},
	}
}

// with returns base with a node of cluster west.
func with(edit func(*Input, *model.Node)) Input {
	in := base()
	n := model.Node{Key: west, Encap: model.EncapAuto,
		Internal: model.Addrs{V4: ip("192.0.2.2"), V6: ip("2001:db8::2")},
		PodCIDRs: model.Prefixes{V4: pfx("10.2.5.0/24"), V6: pfx("fd00:2:0:5::/64")}}
	edit(&in, &n)
	in.Nodes[n.Key] = n
	return in
}

func onlyV6(in *Input) {
	n := in.Nodes[local]
	n.Internal.V4 = netip.Addr{}
	in.Nodes[local] = n
	in.Underlay.Addrs = in.Underlay.Addrs[1:2]
}

func TestRouteToRemoteNode(t *testing.T) {
	link := west.TunnelMAC().LinkLocal()
	tunnel := func(v6 bool, e Encap, mtu uint32) Route {
		src := ip("10.1.3.1")
		if v6 {
			src = ip("fd00:1:0:3::1")
		}
		e.VNI = DefaultVNI
		return Route{Kind: Unicast, Dev: TunnelName, Gateway: link, OnLink: true, Src: src, MTU: mtu, Encap: e}
	}
	over4 := Encap{Src: ip("192.0.2.1"), Dst: ip("192.0.2.2")}
	over6 := Encap{Src: ip("2001:db8::1"), Dst: ip("2001:db8::2")}
	refused := Route{Kind: Unreachable}
	for _, c := range []struct {
		name   string
		edit   func(*Input, *model.Node)
		v4, v6 Route
		lines  string // part of the only message, empty: none
	}{
		{"auto, on-link", func(*Input, *model.Node) {},
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("192.0.2.2"), Src: ip("192.0.2.1"), MTU: 1450},
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("2001:db8::2"), Src: ip("2001:db8::1"), MTU: 1450}, ""},
		{"direct, on-link", func(in *Input, n *model.Node) { in.Backend = model.EncapDirect },
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("192.0.2.2"), Src: ip("192.0.2.1"), MTU: 1500},
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("2001:db8::2"), Src: ip("2001:db8::1"), MTU: 1500}, ""},
		{"auto, one family on-link", func(in *Input, n *model.Node) { n.Internal.V6 = ip("2001:db8:f::2") },
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("192.0.2.2"), Src: ip("192.0.2.1"), MTU: 1450},
			tunnel(true, over4, 1450), ""},
		{"auto, IPv4 pods through an IPv6 next hop", func(in *Input, n *model.Node) { n.Internal.V4 = netip.Addr{} },
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("2001:db8::2"), Src: ip("192.0.2.1"), MTU: 1450},
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("2001:db8::2"), Src: ip("2001:db8::1"), MTU: 1450}, ""},
		{"auto, not on-link", func(in *Input, n *model.Node) { in.Underlay.Addrs = []LocalAddr{{pfx("192.0.2.1/32"), "eth0"}} },
			tunnel(false, over4, 1450), tunnel(true, over4, 1450), ""},
		{"vxlan here", func(in *Input, n *model.Node) { in.Backend = model.EncapVXLAN },
			tunnel(false, over4, 1450), tunnel(true, over4, 1450), ""},
		{"vxlan there", func(in *Input, n *model.Node) { n.Encap = model.EncapVXLAN },
			tunnel(false, over4, 1450), tunnel(true, over4, 1450), ""},
		{"direct there, which cannot receive VXLAN", func(in *Input, n *model.Node) { in.Backend, n.Encap = model.EncapVXLAN, model.EncapDirect },
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("192.0.2.2"), Src: ip("192.0.2.1"), MTU: 1450},
			Route{Kind: Unicast, Dev: "eth0", Gateway: ip("2001:db8::2"), Src: ip("2001:db8::1"), MTU: 1450}, ""},
		{"direct, not on-link", func(in *Input, n *model.Node) {
			in.Backend, n.PodCIDRs.V6, n.Internal = model.EncapDirect, netip.Prefix{}, model.Addrs{V4: ip("203.0.113.2")}
		}, refused, Route{}, "no usable address of the node is on a local subnet"},
		{"vxlan over IPv6 because they lack IPv4", func(in *Input, n *model.Node) {
			in.Backend, n.Internal.V4 = model.EncapVXLAN, netip.Addr{}
		}, tunnel(false, over6, 1430), tunnel(true, over6, 1430), ""},
		{"vxlan over IPv6 because we lack IPv4", func(in *Input, n *model.Node) {
			in.Backend = model.EncapVXLAN
			onlyV6(in)
		}, tunnel(false, over6, 1430), tunnel(true, over6, 1430), ""},
		{"no common family", func(in *Input, n *model.Node) {
			in.Backend = model.EncapVXLAN
			onlyV6(in)
			n.Internal.V6, n.PodCIDRs.V6 = netip.Addr{}, netip.Prefix{}
		}, refused, Route{}, "no address of the same family"},
		{"external address only", func(in *Input, n *model.Node) {
			n.Internal, n.External = model.Addrs{}, model.Addrs{V4: ip("203.0.113.7")}
		},
			tunnel(false, Encap{Src: ip("192.0.2.1"), Dst: ip("203.0.113.7")}, 1450),
			tunnel(true, Encap{Src: ip("192.0.2.1"), Dst: ip("203.0.113.7")}, 1450), ""},
		{"our address is not on any device", func(in *Input, n *model.Node) {
			in.Backend, in.Underlay.Addrs = model.EncapVXLAN, nil
		}, tunnel(false, Encap{Dst: ip("192.0.2.2")}, 1450), tunnel(true, Encap{Dst: ip("192.0.2.2")}, 1450), ""},
		{"another VXLAN port", func(in *Input, n *model.Node) {
			in.Backend, n.VXLANPort, n.PodCIDRs.V6 = model.EncapVXLAN, 4789, netip.Prefix{}
		}, refused, Route{}, "VXLAN on port 4789"},
		{"configured MTU", func(in *Input, n *model.Node) { in.Backend, in.MTU = model.EncapVXLAN, 1350 },
			tunnel(false, over4, 1300), tunnel(true, over4, 1300), ""},
		{"outside of what the peer may announce", func(in *Input, n *model.Node) {
			n.PodCIDRs = model.Prefixes{V4: pfx("10.9.0.0/24")}
		}, Route{}, Route{}, "outside of what cluster west may announce"},
		{"our own prefix", func(in *Input, n *model.Node) {
			in.Mesh["west"] = append(in.Mesh["west"], pfx("10.1.0.0/16"))
			n.PodCIDRs = model.Prefixes{V4: pfx("10.1.3.128/25")}
		}, Route{}, Route{}, "overlaps 10.1.3.0/24 of node east/e1"},
		{"our own address", func(in *Input, n *model.Node) { n.Internal = model.Addrs{V4: ip("192.0.2.1")} },
			Route{}, Route{}, "address 192.0.2.1 is also that of node east/e1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Compute(with(c.edit))
			for dst, want := range map[string]Route{"10.2.5.0/24": c.v4, "fd00:2:0:5::/64": c.v6} {
				if diff := cmp.Diff(want, p.Routes[RouteKey{Dst: pfx(dst)}], comparers...); diff != "" {
					t.Errorf("route to %s (-want +got):\n%s", dst, diff)
				}
			}
			if c.lines == "" && len(p.Lines) > 0 || c.lines != "" && (len(p.Lines) != 1 || !strings.Contains(p.Lines[0].Message, c.lines)) {
				t.Errorf("lines %+v, want one with %q", p.Lines, c.lines)
			}
		})
	}
}

func TestPodMTU(t *testing.T) {
	for _, c := range []struct {
		name    string
		backend model.Encap
		mtu     int
		under   int
		edit    func(*Input)
		want    int
	}{
		{"direct", model.EncapDirect, 0, 1500, nil, 1500},
		{"vxlan", model.EncapVXLAN, 0, 1500, nil, 1450},
		{"auto keeps room for the tunnel", model.EncapAuto, 0, 9000, nil, 8950},
		{"vxlan over IPv6", model.EncapVXLAN, 0, 1500, onlyV6, 1430},
		{"unknown underlay", model.EncapVXLAN, 0, 0, nil, 1450},
		{"configured", model.EncapAuto, 1400, 1500, nil, 1350},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := base()
			in.Backend, in.MTU, in.Underlay.MTU = c.backend, c.mtu, c.under
			if c.edit != nil {
				c.edit(&in)
			}
			if got := PodMTU(in); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

// TestMeshIsClosed: every mesh prefix, and our own, is refused unless somebody
// has it; pods have host routes.
func TestMeshIsClosed(t *testing.T) {
	in := with(func(in *Input, n *model.Node) {
		in.Pods[model.PodKey{ContainerID: "c", IfName: "eth0"}] = model.Pod{HostIf: "cm0", MAC: model.MAC{2}, IPs: model.Addrs{V4: ip("10.1.3.9"), V6: ip("fd00:1:0:3::9")}}
	})
	p := Compute(in)
	var refused []string
	for k, r := range p.Routes {
		if r.Kind == Unreachable {
			refused = append(refused, k.String())
		}
	}
	slices.Sort(refused)
	want := []string{"10.1.0.0/16 (fallback)", "10.1.3.0/24", "10.2.0.0/16 (fallback)",
		"fd00:1:0:3::/64", "fd00:1::/48 (fallback)", "fd00:2::/48 (fallback)"}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused prefixes (-want +got):\n%s", diff)
	}
	if got, want := p.Routes[RouteKey{Dst: pfx("10.1.3.9/32")}], (Route{Kind: Unicast, Dev: "cm0", Src: ip("192.0.2.1")}); got != want {
		t.Errorf("route to a pod: %+v, want %+v", got, want)
	}
	if got, want := p.Neighbours[NeighbourKey{"cm0", ip("fd00:1:0:3::9")}], (Neighbour{model.MAC{2}}); got != want {
		t.Errorf("neighbour: %+v, want %+v", got, want)
	}
}

func TestFilterRows(t *testing.T) {
	rng := func(from, to string) Range { return Range{ip(from), ip(to)} }
	in := with(func(in *Input, n *model.Node) {
		in.Masquerade, n.External.V4 = true, ip("203.0.113.2")
		in.Nodes[model.NodeKey{Cluster: "east", Name: "e2"}] = model.Node{Encap: model.EncapDirect, PodCIDRs: model.Prefixes{V4: pfx("10.1.4.0/24")},
			Internal: model.Addrs{V4: ip("192.0.2.7")}}
		in.Pods[model.PodKey{ContainerID: "c", IfName: "eth0"}] = model.Pod{HostIf: "cm0", IPs: model.Addrs{V4: ip("10.1.3.9")}}
	})
	inner4, inner6 := rng("10.2.5.0", "10.2.5.255"), rng("fd00:2:0:5::", "fd00:2:0:5:ffff:ffff:ffff:ffff")
	want := map[FilterKey]FilterRow{
		{}: {Rules{Tunnel: true, Port: 8472, VNI: 7473, Masquerade: true, Inner4: Lengths{}.With(24), Inner6: Lengths{}.With(64)}},
		{Set: Pods4, Dev: "cm0", Addr: ip("10.1.3.9")}:                              {},
		{Set: Local4, Range: rng("10.1.3.0", "10.1.3.255")}:                         {},
		{Set: Local6, Range: rng("fd00:1:0:3::", "fd00:1:0:3:ffff:ffff:ffff:ffff")}: {},
		{Set: Mesh4, Range: rng("10.1.0.0", "10.2.255.255")}:                        {}, // they touch
		{Set: Mesh6, Range: rng("fd00:1::", "fd00:2:0:ffff:ffff:ffff:ffff:ffff")}:   {},
		{Set: Direct4, Addr: ip("192.0.2.7")}:                                       {}, // and no node of a peer
		{Set: Nodes4, Addr: ip("192.0.2.2")}:                                        {},
		{Set: Nodes4, Addr: ip("203.0.113.2")}:                                      {},
		{Set: Decap44, Addr: ip("192.0.2.2"), Range: inner4}:                        {},
		{Set: Decap44, Addr: ip("203.0.113.2"), Range: inner4}:                      {},
		{Set: Decap46, Addr: ip("192.0.2.2"), Range: inner6}:                        {},
		{Set: Decap46, Addr: ip("203.0.113.2"), Range: inner6}:                      {},
	}
	delete(want, FilterKey{Set: Mesh6, Range: rng("fd00:1::", "fd00:2:0:ffff:ffff:ffff:ffff:ffff")})
	want[FilterKey{Set: Mesh6, Range: rng("fd00:1::", "fd00:1:0:ffff:ffff:ffff:ffff:ffff")}] = FilterRow{}
	want[FilterKey{Set: Mesh6, Range: rng("fd00:2::", "fd00:2:0:ffff:ffff:ffff:ffff:ffff")}] = FilterRow{}
	if diff := cmp.Diff(want, Compute(in).Filter, comparers...); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	in.Backend = model.EncapDirect
	for k := range Compute(in).Filter {
		if strings.HasPrefix(string(k.Set), "decap") || strings.HasPrefix(string(k.Set), "nodes") {
			t.Errorf("without a tunnel there is %v", k)
		}
	}
}

func TestMerge(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"apart", "10.0.0.0/24 10.0.2.0/24", "10.0.0.0-10.0.0.255 10.0.2.0-10.0.2.255"},
		{"touching", "10.0.1.0/24 10.0.0.0/24", "10.0.0.0-10.0.1.255"},
		{"nested", "10.0.0.0/8 10.3.0.0/16 10.3.0.0/16", "10.0.0.0-10.255.255.255"},
		{"nested, then touching", "10.0.0.0/15 10.0.0.0/24 10.2.0.0/16", "10.0.0.0-10.2.255.255"},
		{"end of the space", "255.255.255.0/24 255.0.0.0/8", "255.0.0.0-255.255.255.255"},
		{"families apart", "255.255.255.0/24 ::/128", "255.255.255.0-255.255.255.255 ::-::"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var in []netip.Prefix
			for _, s := range strings.Fields(c.in) {
				in = append(in, pfx(s))
			}
			for range 2 {
				if got := strings.Trim(fmt.Sprint(merge(in)), "[]"); got != c.want {
					t.Errorf("got %s, want %s", got, c.want)
				}
				slices.Reverse(in)
			}
		})
	}
}

// TestOneLinePerObject: a status board has one place for each.
func TestOneLinePerObject(t *testing.T) {
	p := Compute(with(func(in *Input, n *model.Node) {
		in.Backend, n.Internal = model.EncapDirect, model.Addrs{V4: ip("203.0.113.2")}
	}))
	if len(p.Lines) != 1 || !strings.Contains(p.Lines[0].Message, "IPv4 pods not reachable") || !strings.Contains(p.Lines[0].Message, "; IPv6 pods not reachable") {
		t.Errorf("lines: %+v", p.Lines)
	}
}

// TestConflictsAreDecided: whoever comes first, the same node wins, and the
// others are reported. Our own cluster is believed before others.
func TestConflictsAreDecided(t *testing.T) {
	in := base()
	in.Mesh["north"] = []netip.Prefix{pfx("10.0.0.0/8")}
	add := func(cluster, name, addr, cidr string) {
		k := model.NodeKey{Cluster: cluster, Name: name}
		in.Nodes[k] = model.Node{Key: k, Internal: model.Addrs{V4: ip(addr)}, PodCIDRs: model.Prefixes{V4: pfx(cidr)}}
	}
	add("west", "a", "192.0.2.11", "10.2.5.0/24")
	add("west", "b", "192.0.2.12", "10.2.5.0/24")
	add("north", "z", "192.0.2.13", "10.2.0.0/16") // covers both
	add("north", "y", "192.0.2.11", "10.3.0.0/24") // address of west/a
	add("east", "e2", "192.0.2.14", "10.1.4.0/24")
	add("north", "x", "192.0.2.15", "10.1.4.0/25")
	want := map[string]string{"10.1.4.0/24": "192.0.2.14", "10.2.0.0/16": "192.0.2.13", "10.3.0.0/24": "192.0.2.11"}
	p := Compute(in)
	got := map[string]string{}
	for k, r := range p.Routes {
		if r.Kind == Unicast {
			got[k.String()] = r.Gateway.String()
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	var objects []string
	for _, l := range p.Lines {
		objects = append(objects, l.Object)
	}
	if diff := cmp.Diff([]string{"north/x", "west/a", "west/b"}, objects); diff != "" {
		t.Errorf("reported (-want +got):\n%s", diff)
	}
	for range 20 { // maps come in another order every time
		in.Nodes = maps.Clone(in.Nodes)
		in.Mesh = maps.Clone(in.Mesh)
		for cluster, prefixes := range in.Mesh {
			in.Mesh[cluster] = slices.Clone(prefixes)
			slices.Reverse(in.Mesh[cluster])
		}
		in.Underlay.Addrs = slices.Clone(in.Underlay.Addrs)
		slices.Reverse(in.Underlay.Addrs)
		if diff := cmp.Diff(p, Compute(in), comparers...); diff != "" {
			t.Fatalf("another answer for the same input:\n%s", diff)
		}
	}
}

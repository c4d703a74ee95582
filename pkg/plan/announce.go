package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Proxy is an entry by which the kernel answers ARP or neighbour solicitations
// for an address that it does not have itself.
type Proxy struct{}

// AnnounceInput is all that the answering for addresses of load balancers
// depends on.
type AnnounceInput struct {
	Node     string
	Elected  map[netip.Addr]lbpool.Elected
	Underlay Underlay
	Sources  model.Addrs // the node's own, for its packets to these addresses
	MTU      int         // of pods, bytes; 0: not known
}

// Announced is what the kernel should hold for it.
type Announced struct {
	Proxies map[NeighbourKey]Proxy
	Routes  map[RouteKey]Route
	Sysctls map[string]string
	Filter  map[FilterKey]FilterRow
	Lines   []status.Line // Component is "announce"
}

// Announce says what it takes that this node answers for the addresses that it
// was elected for.
//
// For IPv4 Linux answers by a proxy entry only where its route to the address
// leaves by another device than the one that the question came in by
// (arp_process, net/ipv4/arp.c). The route by lo is one of these, and has no
// other use: what a Service takes never gets to it, all else the filter refuses.
// For IPv6 the entry and proxy_ndp are enough (ndisc_recv_ns, net/ipv6/ndisc.c),
// and there can be no such route by lo, so it leads where the address would be.
func Announce(in AnnounceInput) Announced {
	out := Announced{Proxies: map[NeighbourKey]Proxy{}, Routes: map[RouteKey]Route{}, Sysctls: map[string]string{}, Filter: map[FilterKey]FilterRow{}}
	for addr, e := range in.Elected {
		devices := in.devices(addr)
		if e.Node != in.Node || len(devices) == 0 {
			continue
		}
		for _, dev := range devices {
			out.Proxies[NeighbourKey{dev, addr}] = Proxy{}
			maps.Copy(out.Sysctls, proxySettings(dev, addr))
		}
		out.Routes[RouteKey{Dst: netip.PrefixFrom(addr, addr.BitLen())}] = in.route(addr, devices[0])
		out.Filter[FilterKey{Set: of(addr, Announced4, Announced6), Addr: addr}] = FilterRow{}
	}
	out.Lines = in.lines()
	return out
}

// Subnets are the networks that the node shares with others.
func (u Underlay) Subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, l := range u.Addrs {
		if l.shared() {
			out = append(out, l.Prefix)
		}
	}
	return out
}

func (l LocalAddr) shared() bool { return !l.Prefix.IsSingleIP() && l.Dev != "lo" }

// devices are those whose subnets have the address.
func (in AnnounceInput) devices(a netip.Addr) []string {
	var out []string
	for _, l := range in.Underlay.Addrs {
		if l.shared() && l.Prefix.Contains(a) && !slices.Contains(out, l.Dev) {
			out = append(out, l.Dev)
		}
	}
	slices.Sort(out)
	return out
}

func (in AnnounceInput) route(a netip.Addr, dev string) Route {
	r := Route{Kind: Unicast, Dev: "lo", Src: in.Sources.V4, MTU: uint32(in.MTU)}
	if a.Is6() {
		r.Dev, r.Src = dev, in.Sources.V6
	}
	if !slices.ContainsFunc(in.Underlay.Addrs, func(l LocalAddr) bool { return l.Prefix.Addr() == r.Src }) {
		r.Src = netip.Addr{} // the kernel picks
	}
	return r
}

// proxySettings let the kernel answer at once: it would wait for up to 0.8 s in
// case that the address is somebody else's, but here nobody else answers.
func proxySettings(dev string, a netip.Addr) map[string]string {
	if a.Is4() {
		return map[string]string{"net/ipv4/neigh/" + dev + "/proxy_delay": "0"}
	}
	return map[string]string{"net/ipv6/neigh/" + dev + "/proxy_delay": "0", "net/ipv6/conf/" + dev + "/proxy_ndp": "1"}
}

// lines tell what this node answers for, and what nobody does.
func (in AnnounceInput) lines() []status.Line {
	var mine []netip.Addr
	nobody, elsewhere := map[string][]netip.Addr{}, map[string][]netip.Addr{}
	for addr, e := range in.Elected {
		switch {
		case !e.Subnet.IsValid():
			elsewhere[e.Pool] = append(elsewhere[e.Pool], addr)
		case e.Node == "":
			nobody[e.Pool] = append(nobody[e.Pool], addr)
		case e.Node == in.Node:
			mine = append(mine, addr)
		}
	}
	var out []status.Line
	add := func(object string, level status.Level, message, remedy string) {
		out = append(out, status.Line{Key: status.Key{Component: "announce", Object: object}, Level: level, Message: message, Remedy: remedy})
	}
	if len(mine) > 0 {
		add("", status.OK, "this node answers for "+listed(mine), "")
	}
	for pool, list := range elsewhere {
		add(pool, status.Info, "not announced by this node, which has no subnet with "+listed(list),
			"route these addresses to the nodes, or use a pool of addresses out of the nodes' subnet")
	}
	for pool, list := range nobody {
		add(pool+" (nobody)", status.Info, "no node answers for "+listed(list),
			"see that a node which spec.announce.nodeSelector chooses is Ready, with externalTrafficPolicy Local that one of them has a ready endpoint, and that the address is not the first or last of the nodes' subnet")
	}
	return sortLines(out)
}

// listed names the first few of a list, and how many there are.
func listed(list []netip.Addr) string {
	const most = 20
	slices.SortFunc(list, netip.Addr.Compare)
	var texts []string
	for _, a := range list[:min(len(list), most)] {
		texts = append(texts, a.String())
	}
	if len(list) > most {
		return fmt.Sprintf("%s … (%d addresses)", strings.Join(texts, ", "), len(list))
	}
	return strings.Join(texts, ", ")
}

// Announcing tells whether a row may be one of Announced: those of an agent
// before us stay until it is known who answers now.
func (k RouteKey) Announcing(mesh map[string][]netip.Prefix) bool {
	if !k.Dst.IsSingleIP() {
		return false
	}
	for _, prefixes := range mesh {
		if slices.ContainsFunc(prefixes, k.Dst.Overlaps) {
			return false
		}
	}
	return true
}

// Announcing tells the same of an element of a set.
func (k FilterKey) Announcing() bool { return k.Set == Announced4 || k.Set == Announced6 }

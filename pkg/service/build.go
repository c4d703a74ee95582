package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// rank says who has an address that several Services claim: a cluster IP or a
// node port, which Kubernetes itself gave out, before an external address; then
// the older Service; then the smaller name.
type rank struct {
	external bool
	created  int64
}

func compareClaims(a, b claim) int {
	if a.rank.external != b.rank.external {
		if b.rank.external {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.rank.created, b.rank.created),
		strings.Compare(a.owner.Namespace, b.owner.Namespace), strings.Compare(a.owner.Name, b.owner.Name), strings.Compare(a.owner.Port, b.owner.Port))
}

// builder makes the claims of one Service.
type builder struct {
	base  *Base
	ports map[named][]served
	add   func(FrontKey, claim)

	lines      []status.Line
	healthPort uint16
	local      map[netip.Addr]bool // ready backends on this node
}

// backend is an endpoint with the number of the port in question.
type backend struct {
	wire.SliceEndpoint
	port uint16
}

func (e backend) addrPort() netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.port) }

// port makes the claims of one port, in both families.
func (b *builder) port(key model.ServicePortKey, s model.ServicePort) {
	all := b.backends(key, s)
	b.checkRanges(key, s.SourceRanges)
	for _, six := range []bool{false, true} {
		b.family(key, s, all, six)
	}
	if s.ExternalLocal && s.HealthCheckNodePort != 0 {
		b.healthPort = s.HealthCheckNodePort
		for _, e := range onNode(all, b.base.Node) {
			if e.Ready { // one that terminates gets no new clients from load balancers
				b.local[e.Addr] = true
			}
		}
	}
}

// ready is how many backends of the Service are ready on this node: a pod with an
// address of each family is one.
func (b *builder) ready() int {
	six := 0
	for a := range b.local {
		if a.Is6() {
			six++
		}
	}
	return max(six, len(b.local)-six)
}

// named is how a Service's port finds those of slices.
type named struct {
	name     string
	protocol uint8
}

// served is a port of a slice.
type served struct {
	slice *wire.Slice
	port  uint16
}

// index says where ports are: a Service may have thousands.
func index(slices []wire.Slice) map[named][]served {
	out := map[named][]served{}
	for i := range slices {
		for _, p := range slices[i].Ports {
			if p.Port != 0 {
				k := named{p.Name, p.Protocol}
				out[k] = append(out[k], served{&slices[i], p.Port})
			}
		}
	}
	return out
}

// backends are the endpoints that have the port, of all slices.
func (b *builder) backends(key model.ServicePortKey, s model.ServicePort) []backend {
	var out []backend
	for _, p := range b.ports[named{key.Port, s.Protocol}] {
		for _, e := range p.slice.Endpoints {
			if a := e.Addr; a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
				b.lines = append(b.lines, line(key, fmt.Sprintf("endpoint %v is refused: it is no address of a pod or a host", a), "take it out of the EndpointSlice"))
				continue // the API refuses these as well; a socket's own host must not be a backend
			}
			out = append(out, backend{e, p.port})
		}
	}
	slices.SortFunc(out, func(x, y backend) int {
		return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.port, y.port), x.Compare(y.SliceEndpoint))
	})
	return slices.CompactFunc(out, func(x, y backend) bool { return x.Addr == y.Addr && x.port == y.port })
}

// family makes the claims of one port in one family: none, whatever the Service
// says of nodes and outside, if it has no cluster IP of that.
func (b *builder) family(key model.ServicePortKey, s model.ServicePort, all []backend, six bool) {
	clusterIP := s.ClusterIPs.V4
	if six {
		clusterIP = s.ClusterIPs.V6
	}
	if !clusterIP.IsValid() {
		return
	}
	all = slices.DeleteFunc(slices.Clone(all), func(e backend) bool { return e.Addr.Is6() != six })
	cluster := usable(b.near(all))
	everybody := b.front(key, s, cluster, Reject)
	inside, here := everybody, everybody
	if s.InternalLocal || s.ExternalLocal {
		none := Drop // others have some
		if len(cluster) == 0 {
			none = Reject
		}
		here = b.front(key, s, usable(onNode(all, b.base.Node)), none)
	}
	if s.InternalLocal {
		inside = here
	}
	given := rank{created: s.CreatedUnix}
	at := func(addr netip.Addr, port uint16) FrontKey {
		return FrontKey{Addr: addr, Protocol: s.Protocol, Port: port}
	}
	b.add(at(clusterIP, s.Port), claim{key, inside, given})
	// From inside the cluster an external address leads to all backends, whatever
	// the external policy says (KEP-1669): going out and in again could do no better.
	outside := func(k FrontKey, ranges string, r rank) {
		b.add(k, claim{key, limited(everybody, ranges, six), r})
		if s.ExternalLocal {
			k.Outside = true
			b.add(k, claim{key, limited(here, ranges, six), r})
		}
	}
	if s.NodePort != 0 {
		for _, a := range b.base.NodeAddrs {
			if a.Is6() == six {
				outside(at(a, s.NodePort), "", given)
			}
		}
	}
	seen := map[netip.Addr]bool{clusterIP: true}
	for i, list := range []string{s.LoadBalancerIPs, s.ExternalIPs} {
		for _, a := range addrs(list) {
			if a.Is6() != six || seen[a] || !b.allowed(key, a) {
				continue
			}
			seen[a] = true
			ranges := s.SourceRanges
			if i == 1 {
				ranges = ""
			}
			outside(at(a, s.Port), ranges, rank{external: true, created: s.CreatedUnix})
		}
	}
}

// allowed refuses external addresses that belong to somebody else.
func (b *builder) allowed(key model.ServicePortKey, a netip.Addr) bool {
	refuse := func(format string, args ...any) bool {
		b.lines = append(b.lines, line(key, fmt.Sprintf(format, args...), "take it out of the Service's externalIPs, or let the load balancer assign another one"))
		return false
	}
	if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
		return refuse("external address %v can't be reached from outside", a)
	}
	if len(b.base.External) > 0 {
		if !slices.ContainsFunc(b.base.External, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return refuse("external address %v is refused: it is not in services.externalCIDRs", a)
		}
		return true // somebody has thought of it
	}
	for _, p := range b.base.Ours {
		if p.Contains(a) {
			return refuse("external address %v is refused: it lies in %v, which nodes, pods or Services use", a, p)
		}
	}
	return true
}

// checkRanges says which source ranges are none.
func (b *builder) checkRanges(key model.ServicePortKey, ranges string) {
	for _, text := range strings.Fields(ranges) {
		if _, err := netip.ParsePrefix(text); err != nil {
			b.lines = append(b.lines, line(key, fmt.Sprintf("source range %q is no prefix: it lets nobody in", text), "write it as address/length in loadBalancerSourceRanges"))
		}
	}
}

// front gives all of list the same share.
func (b *builder) front(key model.ServicePortKey, s model.ServicePort, list []backend, none Verdict) Front {
	if len(list) == 0 {
		return Front{Verdict: none}
	}
	equal := make([]Backend, 0, len(list))
	for _, e := range list {
		equal = append(equal, Backend{e.addrPort(), 1})
	}
	slots, even := Spread(equal)
	if !even {
		b.lines = append(b.lines, line(key, fmt.Sprintf("%d backends are too many for even shares", len(list)), "split the Service"))
	}
	return Front{Slots: slots, AffinitySeconds: s.AffinitySeconds}
}

// limited is f for clients in ranges only, as far as they are of the family; of
// those that overlap the widest counts.
func limited(f Front, ranges string, six bool) Front {
	if ranges == "" {
		return f
	}
	var kept []netip.Prefix
	var texts []string
	for _, text := range strings.Fields(ranges) { // sorted: a wider one comes first
		p, err := netip.ParsePrefix(text)
		if err == nil && p.Addr().Is6() == six && !slices.ContainsFunc(kept, p.Overlaps) {
			kept, texts = append(kept, p), append(texts, text)
		}
	}
	switch {
	case len(kept) == 0:
		return Front{Verdict: Drop} // nobody of this family
	case kept[0].Bits() == 0:
		return f // everybody
	}
	f.Ranges = strings.Join(texts, " ")
	return f
}

// usable are the ready ones, or those that still serve while they terminate if
// there is no other (KEP-1669).
func usable(list []backend) []backend {
	ready := slices.DeleteFunc(slices.Clone(list), func(e backend) bool { return !e.Ready })
	if len(ready) > 0 {
		return ready
	}
	return slices.DeleteFunc(slices.Clone(list), func(e backend) bool { return !e.Serving || !e.Terminating })
}

func onNode(list []backend, node string) []backend {
	return slices.DeleteFunc(slices.Clone(list), func(e backend) bool { return e.Node != node || node == "" })
}

// near follows hints: to backends meant for this node, else for this zone. They
// count only if every ready backend has them and one is meant for us, so that
// hints that are being changed lose nobody (KEP-2433, KEP-4444, KEP-3015).
func (b *builder) near(all []backend) []backend {
	for _, kind := range []struct {
		us    string
		hints func(backend) string
	}{
		{b.base.Node, func(e backend) string { return e.ForNodes }},
		{b.base.Zone, func(e backend) string { return e.ForZones }},
	} {
		var out []backend
		whole := kind.us != ""
		for _, e := range all {
			hints := kind.hints(e)
			switch {
			case !e.Ready:
			case hints == "":
				whole = false
			case whole && slices.Contains(strings.Split(hints, ","), kind.us):
				out = append(out, e)
			}
		}
		if whole && len(out) > 0 {
			return out
		}
	}
	return all
}

package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Set names a set of the nft table `inet clustermesh`.
type Set string

// The sets. A number is the family of the addresses; decap46 holds outer IPv4
// and inner IPv6. RuleSet stands for the rules themselves: chains, sets and
// counters, which are one row.
const (
	RuleSet Set = ""

	Pods4, Pods6   Set = "pods4", "pods6"   // device . address that a pod may send from
	Local4, Local6 Set = "local4", "local6" // pod prefixes of this node
	Mesh4, Mesh6   Set = "mesh4", "mesh6"   // pod prefixes of all clusters
	Direct4        Set = "direct4"          // our cluster's nodes that are reached without a tunnel
	Direct6        Set = "direct6"          // and so see pods' own addresses
	Nodes4, Nodes6 Set = "nodes4", "nodes6" // addresses that other nodes encapsulate from and to
	Decap44        Set = "decap44"          // outer source . inner source
	Decap46        Set = "decap46"          //
	Decap64        Set = "decap64"          //
	Decap66        Set = "decap66"          //
	Announced4     Set = "announced4"       // addresses of load balancers that this node answers for:
	Announced6     Set = "announced6"       // what no Service takes of their packets is refused
)

// Range is the addresses from From to To, both included.
type Range struct{ From, To netip.Addr }

func (r Range) String() string { return fmt.Sprintf("%v-%v", r.From, r.To) }

// FilterKey names an element of a set, or all the rules (the zero key).
type FilterKey struct {
	Set   Set
	Dev   string     // Pods
	Addr  netip.Addr // Pods, Nodes, Direct, Announced, outer source of Decap
	Range Range      // Local, Mesh, inner source of Decap
}

// FilterRow is the value of a key: Rules for RuleSet, nothing for elements.
type FilterRow struct{ Rules Rules }

// Rules is what the rules depend on.
type Rules struct {
	Tunnel     bool
	Masquerade bool
	Services   bool // connections to Services are translated here
	Port       uint16
	VNI        uint32
	Inner4     Lengths // of the pod prefixes in Decap44 and Decap64
	Inner6     Lengths // in Decap46 and Decap66
}

// Lengths is a set of prefix lengths from 1 to 128.
type Lengths [2]uint64

// With returns the set with one more length.
func (l Lengths) With(bits int) Lengths {
	l[(bits-1)/64] |= 1 << ((bits - 1) % 64)
	return l
}

// All returns the lengths, longest first.
func (l Lengths) All() []int {
	var out []int
	for bits := 128; bits > 0; bits-- {
		if l[(bits-1)/64]&(1<<((bits-1)%64)) != 0 {
			out = append(out, bits)
		}
	}
	return out
}

func (r *resolver) filter(remotes []remote) map[FilterKey]FilterRow {
	out := make(map[FilterKey]FilterRow, 4*len(remotes)+2*len(r.in.Pods)+8)
	add := func(k FilterKey) { out[k] = FilterRow{} }
	for _, p := range r.local.PodCIDRs.All() {
		add(FilterKey{Set: of(p.Addr(), Local4, Local6), Range: rangeOf(p)})
	}
	for _, rng := range merge(r.meshPrefixes(remotes)) {
		add(FilterKey{Set: of(rng.From, Mesh4, Mesh6), Range: rng})
	}
	for _, m := range remotes {
		r.remoteFilter(m, add)
		r.count(m, 1)
	}
	for _, pod := range r.pods {
		podFilter(pod, add)
	}
	out[FilterKey{}] = FilterRow{r.rules()}
	return out
}

// rules is the row of the rules. Prefix lengths that come or go change it.
func (r *resolver) rules() Rules {
	out := Rules{Masquerade: r.in.Masquerade, Services: r.in.Services}
	if !r.hasTunnel() {
		return out
	}
	out.Tunnel, out.Port, out.VNI = true, r.port(), vni(r.local)
	out.Inner4, out.Inner6 = r.in.Held.Inner4, r.in.Held.Inner6
	for bits := 1; bits <= 128; bits++ {
		if r.inner4[bits] > 0 {
			out.Inner4 = out.Inner4.With(bits)
		}
		if r.inner6[bits] > 0 {
			out.Inner6 = out.Inner6.With(bits)
		}
	}
	return out
}

// count notes how often a prefix length is in use, by how much that changes
// with m.
func (r *resolver) count(m remote, by int) {
	if !r.decapsulates(m) {
		return
	}
	r.inner4[max(0, m.pods.V4.Bits())] += by
	r.inner6[max(0, m.pods.V6.Bits())] += by
}

// decapsulates tells whether a node and this one may use the tunnel with each
// other.
func (r *resolver) decapsulates(m remote) bool {
	return r.hasTunnel() && m.node.Encap != model.EncapDirect
}

// podFilter adds what a pod may send from.
func podFilter(pod model.Pod, add func(FilterKey)) {
	for _, ip := range pod.IPs.All() {
		add(FilterKey{Set: of(ip, Pods4, Pods6), Dev: pod.HostIf, Addr: ip})
	}
}

// remoteFilter adds who a node is, and every pair of outer and inner source
// that may come out of the tunnel from it. It holds also for nodes that we send
// to directly: they choose for themselves how they send to us.
func (r *resolver) remoteFilter(m remote, add func(FilterKey)) {
	for _, h := range []hop{m.v4, m.v6} {
		// A peer names its nodes' addresses: with one of a neighbour of ours
		// that is no node, it would keep our pods' packets to that neighbour
		// from being masqueraded, and the answers from coming back.
		if h.direct() && m.node.Key.Cluster == r.in.Local.Cluster {
			add(FilterKey{Set: of(h.gateway, Direct4, Direct6), Addr: h.gateway})
		}
	}
	if !r.decapsulates(m) {
		return
	}
	for _, a := range r.outer(m.node) {
		add(FilterKey{Set: of(a, Nodes4, Nodes6), Addr: a})
		for _, p := range m.pods.All() {
			set := of(p.Addr(), of(a, Decap44, Decap64), of(a, Decap46, Decap66))
			add(FilterKey{Set: set, Addr: a, Range: rangeOf(p)})
		}
	}
}

// outer returns the addresses that a node's encapsulated packets may come from:
// those of the one family that both ends settle on.
func (r *resolver) outer(n model.Node) []netip.Addr {
	v6 := !target(r.local).V4.IsValid() || !target(n).V4.IsValid()
	return slices.DeleteFunc(addresses(n), func(a netip.Addr) bool { return a.Is6() != v6 })
}

// meshPrefixes is all that is not masqueraded: what clusters may use, and what
// nodes do use, which for our own cluster need not be configured.
func (r *resolver) meshPrefixes(remotes []remote) []netip.Prefix {
	var out []netip.Prefix
	for _, prefixes := range r.in.Mesh {
		out = append(out, prefixes...)
	}
	for _, m := range remotes {
		for _, p := range m.pods.All() {
			if !r.inMesh(m.node.Key.Cluster, p) {
				out = append(out, p)
			}
		}
	}
	return append(out, r.local.PodCIDRs.All()...)
}

// inMesh tells whether a prefix lies in what a cluster is known to use.
func (r *resolver) inMesh(cluster string, p netip.Prefix) bool {
	for _, m := range r.in.Mesh[cluster] {
		if m.Bits() <= p.Bits() && m.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// of picks by the family of a.
func of(a netip.Addr, v4, v6 Set) Set {
	if a.Is6() {
		return v6
	}
	return v4
}

func rangeOf(p netip.Prefix) Range {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	to, _ := netip.AddrFromSlice(b)
	return Range{p.Addr(), to}
}

// merge returns the fewest ranges that cover prefixes: none overlap, none
// touch, which is what a plain interval set of the kernel takes.
func merge(prefixes []netip.Prefix) []Range {
	ranges := make([]Range, 0, len(prefixes))
	for _, p := range prefixes {
		ranges = append(ranges, rangeOf(p))
	}
	slices.SortFunc(ranges, func(a, b Range) int {
		return cmp.Or(a.From.Compare(b.From), b.To.Compare(a.To))
	})
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && touches(out[n-1], r) {
			if out[n-1].To.Less(r.To) {
				out[n-1].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// touches tells whether b, which does not begin before a, overlaps a or
// follows it without a gap.
func touches(a, b Range) bool {
	if a.From.BitLen() != b.From.BitLen() {
		return false
	}
	next := a.To.Next()
	return !next.IsValid() || !next.Less(b.From)
}

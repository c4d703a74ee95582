package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// hop is how packets get to a remote node. The zero hop means not at all.
type hop struct {
	dev     string
	gateway netip.Addr // direct: the node's own address
	outer   netip.Addr // tunnel: where encapsulated packets go
	source  netip.Addr // tunnel: where they come from
}

func (h hop) direct() bool { return h.gateway.IsValid() }
func (h hop) tunnel() bool { return h.outer.IsValid() }
func (h hop) ok() bool     { return h.direct() || h.tunnel() }

// remote is another node with all that was decided about it. Nodes of this and
// of other clusters are treated alike.
type remote struct {
	node   model.Node
	pods   model.Prefixes // accepted
	v4, v6 hop            // for pods of each family
}

func (m remote) hop(v6 bool) hop {
	if v6 {
		return m.v6
	}
	return m.v4
}

// remotes resolves all other nodes, in an order that depends on nothing but
// their names.
func (r *resolver) remotes() []remote {
	pods := r.accepted()
	keys := make([]model.NodeKey, 0, len(r.in.Nodes))
	for k := range r.in.Nodes {
		if k != r.in.Local {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, r.rank)
	r.owner = make(map[netip.Addr]model.NodeKey, 2*len(keys))
	out := make([]remote, 0, len(keys))
	for _, k := range keys {
		if m, ok := r.remote(k, pods[k]); ok {
			out = append(out, m)
		}
	}
	return out
}

// remote resolves one node whose accepted pod prefixes are pods.
func (r *resolver) remote(k model.NodeKey, pods model.Prefixes) (remote, bool) {
	n := r.in.Nodes[k]
	n.Key = k
	if pods == (model.Prefixes{}) || !r.ownAddresses(n) {
		return remote{}, false
	}
	m := remote{node: n, pods: pods}
	if m.pods.V4.IsValid() {
		m.v4 = r.reach(n, false)
	}
	if m.pods.V6.IsValid() {
		m.v6 = r.reach(n, true)
	}
	return m, true
}

// ownAddresses claims the node's addresses. An address that belongs to another
// node would let the two speak for each other's pods.
func (r *resolver) ownAddresses(n model.Node) bool {
	for _, a := range addresses(n) {
		other, taken := r.owner[a]
		if r.mine[a] {
			other, taken = r.in.Local, true
		}
		if taken {
			r.conflict(n.Key.String(),
				fmt.Sprintf("address %v is also that of node %v; this node is not routed to", a, other),
				"remove the stale node, or give the nodes distinct addresses")
			return false
		}
	}
	for _, a := range addresses(n) {
		r.owner[a] = n.Key
	}
	return true
}

// addresses returns all addresses that a node's packets may come from.
func addresses(n model.Node) []netip.Addr {
	out := make([]netip.Addr, 0, 4)
	for _, a := range []netip.Addr{n.Internal.V4, n.Internal.V6, n.External.V4, n.External.V6} {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// target returns the address per family to send to: External only where a
// family has no Internal one.
func target(n model.Node) model.Addrs {
	return n.Internal.Add(n.External.V4).Add(n.External.V6)
}

// reach decides how pods of one family on node n are reached.
func (r *resolver) reach(n model.Node, v6 bool) hop {
	direct := r.directHop(n, v6)
	switch backend(r.in.Backend, n.Encap) {
	case model.EncapDirect:
		if !direct.ok() {
			r.report(n.Key.String(), status.Degraded,
				fmt.Sprintf("%s pods not reachable: backend direct, and no usable address of the node is on a local subnet", familyName(v6)),
				"set routing.backend to auto or vxlan on both sides")
		}
		return direct
	case model.EncapVXLAN:
		return r.tunnelHop(n, v6)
	}
	if direct.ok() {
		return direct
	}
	return r.tunnelHop(n, v6)
}

// backend combines what this node and the other one are configured for, so that
// both ends come to the same answer: who has no tunnel can only be sent to
// directly, else who wants a tunnel gets one.
func backend(ours, theirs model.Encap) model.Encap {
	switch {
	case ours == model.EncapDirect || theirs == model.EncapDirect:
		return model.EncapDirect
	case ours == model.EncapVXLAN || theirs == model.EncapVXLAN:
		return model.EncapVXLAN
	}
	return model.EncapAuto
}

// directHop finds an address of n on a local subnet. IPv4 may go through an
// IPv6 next hop (RFC 5549); Linux has no way for the reverse.
func (r *resolver) directHop(n model.Node, v6 bool) hop {
	t := target(n)
	candidates := []netip.Addr{t.V4, t.V6}
	if v6 {
		candidates = candidates[1:]
	}
	for _, a := range candidates {
		if !a.IsValid() {
			continue
		}
		for _, s := range r.subnet {
			if s.Prefix.Contains(a) && !isNetworkOrBroadcast(s.Prefix, a) {
				return hop{dev: s.Dev, gateway: a}
			}
		}
	}
	return hop{}
}

// isNetworkOrBroadcast tells whether a is no host's address in a subnet of IPv4.
func isNetworkOrBroadcast(p netip.Prefix, a netip.Addr) bool {
	r := rangeOf(p)
	return a.Is4() && p.Bits() < 31 && (a == r.From || a == r.To)
}

// tunnelHop picks the outer header: IPv4 if both ends have it, else IPv6.
func (r *resolver) tunnelHop(n model.Node, v6 bool) hop {
	if router := r.router.V4; !v6 && !router.IsValid() || v6 && !r.router.V6.IsValid() {
		return hop{} // nothing here speaks that family
	}
	if n.VXLANPort != 0 && n.VXLANPort != r.port() {
		r.report(n.Key.String(), status.Degraded,
			fmt.Sprintf("not reachable: it takes VXLAN on port %d, this node on %d", n.VXLANPort, r.port()),
			"use one VXLAN port in the whole mesh")
		return hop{}
	}
	ours, theirs := target(r.local), target(n)
	switch {
	case ours.V4.IsValid() && theirs.V4.IsValid():
		return hop{dev: TunnelName, outer: theirs.V4, source: r.usable(ours.V4)}
	case ours.V6.IsValid() && theirs.V6.IsValid():
		return hop{dev: TunnelName, outer: theirs.V6, source: r.usable(ours.V6)}
	}
	r.report(n.Key.String(), status.Degraded, "not reachable: the two nodes have no address of the same family",
		"give both nodes an IPv4 or both an IPv6 address")
	return hop{}
}

// usable returns a if the kernel here holds it, else none: it refuses a route
// with a foreign source.
func (r *resolver) usable(a netip.Addr) netip.Addr {
	if slices.ContainsFunc(r.in.Underlay.Addrs, func(l LocalAddr) bool { return l.Prefix.Addr() == a }) {
		return a
	}
	return netip.Addr{}
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// describe says for people how each node is reached.
func describe(remotes []remote) []status.Remote {
	out := make([]status.Remote, 0, len(remotes))
	for _, m := range remotes {
		if s, ok := m.describe(); ok {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, compareRemotes)
	return out
}

func (m remote) describe() (s status.Remote, ok bool) {
	s = status.Remote{Cluster: m.node.Key.Cluster, Node: m.node.Key.Name}
	for _, p := range m.pods.All() {
		h := m.hop(p.Addr().Is6())
		switch {
		case !h.ok():
			continue
		case s.Via != "":
		case h.tunnel():
			s.Backend, s.Via = string(model.EncapVXLAN), h.outer.String()
		default:
			s.Backend, s.Via = string(model.EncapDirect), h.gateway.String()
		}
		s.Prefixes = append(s.Prefixes, p.String())
	}
	return s, len(s.Prefixes) > 0
}

func compareRemotes(a, b status.Remote) int {
	return model.NodeKey{Cluster: a.Cluster, Name: a.Node}.Compare(model.NodeKey{Cluster: b.Cluster, Name: b.Node})
}

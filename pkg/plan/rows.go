package plan

import (
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Kind is what a route does with a packet.
type Kind uint8

// The kinds. Foreign is never wanted: it stands for a route in our table that
// we would not have written (other protocol, several next hops, …).
const (
	Foreign Kind = iota
	Unicast
	Unreachable // drop, and tell the sender by ICMP
)

func (k Kind) String() string {
	return [...]string{"foreign", "unicast", "unreachable"}[k]
}

// RouteKey names a route in our table. A fallback is used where there is no
// other route to its prefix. Extra is 0 in every plan; it numbers the foreign
// routes that a kernel holds beside ours to the same prefix.
type RouteKey struct {
	Dst      netip.Prefix
	Fallback bool
	Extra    int
}

func (k RouteKey) String() string {
	switch {
	case k.Extra != 0:
		return fmt.Sprintf("%v (foreign %d)", k.Dst, k.Extra)
	case k.Fallback:
		return fmt.Sprintf("%v (fallback)", k.Dst)
	}
	return k.Dst.String()
}

// Encap is the outer header of a lightweight-tunnel route. The zero Encap means
// that packets leave as they are.
type Encap struct {
	VNI      uint32
	Src, Dst netip.Addr // Src zero: the kernel picks
}

// Route is where packets to a prefix go. It is 128 bytes, the most that maps
// hold in place: one byte more and a map of routes is three times as slow.
type Route struct {
	Kind    Kind
	OnLink  bool   // do not look for the gateway in a subnet
	MTU     uint32 // bytes; 0: the device's
	Dev     string
	Gateway netip.Addr // of either family (RFC 5549 for IPv4 via IPv6); zero: on the link itself
	Src     netip.Addr // source for the host's own packets; zero: the kernel picks
	Encap   Encap
}

// Family is an IP version.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// RuleKey names a rule that leads to our table, or is marked as ours. Extra is
// 0 in every plan; it numbers what a kernel holds beside the wanted rule.
type RuleKey struct {
	Family Family
	Extra  int
}

// Rule is a routing policy rule for all packets.
type Rule struct{ Priority, Table uint32 }

// NeighbourKey names a neighbour.
type NeighbourKey struct {
	Dev string
	IP  netip.Addr
}

// Neighbour is a permanent entry, so that nothing is ever asked of pods or sent
// through the tunnel to find it.
type Neighbour struct{ MAC model.MAC }

// Tunnel is the collect-metadata VXLAN device. It has no VNI and no remote:
// each route brings them along.
type Tunnel struct {
	Port  uint16
	MTU   int
	MAC   model.MAC
	Addrs model.Addrs // sources of the host's own packets, /32 and /128
}

// rules leads every packet through our table before main, so that a mesh
// prefix never falls through to the default route.
func rules() map[RuleKey]Rule {
	rule := Rule{Priority: RulePriority, Table: Table}
	return map[RuleKey]Rule{{Family: IPv4}: rule, {Family: IPv6}: rule}
}

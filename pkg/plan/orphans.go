package plan

import (
	"net/netip"
	"slices"
)

// Unreported are the pod prefixes of peers whose nodes are not known yet. What
// the kernel holds for their sake, from before a restart, must stay; what
// belongs to others may go.
type Unreported []netip.Prefix

// Route tells whether a route that nobody wants may be deleted.
func (u Unreported) Route(k RouteKey) bool { return !slices.ContainsFunc(u, k.Dst.Overlaps) }

// Neighbour tells so of a neighbour. Far ends of the tunnel do not say whose
// they are.
func (u Unreported) Neighbour(k NeighbourKey) bool { return len(u) == 0 || k.Dev != TunnelName }

// Filter tells so of an element of a set. The addresses of nodes do not say
// whose they are; a packet from one of them still needs a pair in Decap.
func (u Unreported) Filter(k FilterKey) bool {
	switch k.Set {
	case Nodes4, Nodes6:
		return len(u) == 0
	case Decap44, Decap46, Decap64, Decap66:
		return !slices.ContainsFunc(u, func(p netip.Prefix) bool { return p.Contains(k.Range.From) })
	}
	return true
}

// Package ipam hands out the nodes' pod networks from the cluster's pool where
// no controller-manager does (ipam.mode=cluster-pool). Assign decides; Pool is
// the target that writes it to Kubernetes. What a node has it keeps, and it is
// free again once the node is gone.
package ipam

import (
	"math/big"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Masks are the sizes of a node's share, in bits.
type Masks struct{ V4, V6 int }

func (m Masks) of(p netip.Prefix) int {
	if p.Addr().Is4() {
		return m.V4
	}
	return m.V6
}

// Assign gives every node without a pod network one of each family that pools
// has, the lowest that overlaps nobody else's. nodes holds what each node has,
// those of other origin included; it is not changed. without are the nodes
// that get nothing, because the pool of some family is used up: half a
// dual-stack node could not be mended later, as Kubernetes lets pod networks be
// set only once.
func Assign(pools []netip.Prefix, masks Masks, nodes map[string]model.Prefixes) (given map[string]model.Prefixes, without []string) {
	var used, waiting = []netip.Prefix{}, []string{}
	for name, p := range nodes {
		if p == (model.Prefixes{}) {
			waiting = append(waiting, name)
		}
		used = append(used, p.All()...)
	}
	slices.Sort(waiting)
	families := byFamily(pools, masks, used)
	given = map[string]model.Prefixes{}
	for _, name := range waiting {
		var share model.Prefixes
		complete := true
		for _, f := range families {
			p, ok := f.peek()
			complete = complete && ok
			share = share.Add(p)
		}
		if !complete {
			without = append(without, name)
			continue
		}
		for _, f := range families {
			f.take()
		}
		given[name] = share
	}
	return given, without
}

// family walks through the shares of one family's pools.
type family struct {
	pools  []netip.Prefix
	bits   int
	exact  map[netip.Prefix]bool // shares that somebody has, or has a part of
	wider  []netip.Prefix        // used networks wider than a share
	next   netip.Prefix          // not valid: to be found
	cursor netip.Addr            // where to look on, in pools[0]
}

func byFamily(pools []netip.Prefix, masks Masks, used []netip.Prefix) []*family {
	var out []*family
	for _, four := range []bool{true, false} {
		f := &family{exact: map[netip.Prefix]bool{}}
		for _, p := range pools {
			if p.Addr().Is4() == four {
				f.pools, f.bits = append(f.pools, p), masks.of(p)
			}
		}
		if len(f.pools) == 0 {
			continue
		}
		for _, u := range used {
			switch {
			case u.Addr().Is4() != four:
			case u.Bits() < f.bits:
				f.wider = append(f.wider, u)
			default:
				f.exact[netip.PrefixFrom(u.Addr(), f.bits).Masked()] = true
			}
		}
		f.cursor = f.pools[0].Addr()
		out = append(out, f)
	}
	return out
}

// peek returns the lowest free share.
func (f *family) peek() (netip.Prefix, bool) {
	for !f.next.IsValid() && len(f.pools) > 0 {
		if !f.pools[0].Contains(f.cursor) {
			if f.pools = f.pools[1:]; len(f.pools) > 0 {
				f.cursor = f.pools[0].Addr()
			}
			continue
		}
		p := netip.PrefixFrom(f.cursor, f.bits)
		f.cursor = after(p)
		overlaps := func(w netip.Prefix) bool { return w.Overlaps(p) }
		if p.Bits() >= f.pools[0].Bits() && !f.exact[p] && !slices.ContainsFunc(f.wider, overlaps) {
			f.next = p
		}
	}
	return f.next, f.next.IsValid()
}

func (f *family) take() { f.next = netip.Prefix{} }

// after is the first address behind p; not valid if there is none.
func after(p netip.Prefix) netip.Addr {
	a := p.Addr()
	n := new(big.Int).SetBytes(a.AsSlice())
	n.Add(n, new(big.Int).Lsh(big.NewInt(1), uint(a.BitLen()-p.Bits())))
	if n.BitLen() > a.BitLen() {
		return netip.Addr{}
	}
	out, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, a.BitLen()/8)))
	return out
}

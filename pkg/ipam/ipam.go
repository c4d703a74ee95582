// Package ipam hands out the addresses of this node's pods. It only decides:
// it does no I/O, and memory grows with the addresses in use, not with the size
// of the prefix, so an IPv6 /64 costs nothing.
package ipam

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Allocator gives each owner at most one address per family. An address goes
// round the whole prefix before it is handed out again, so that peers' neighbour
// and conntrack entries of a deleted pod do not meet a new one. It is not safe
// for concurrent use.
type Allocator struct {
	prefixes model.Prefixes
	owners   map[model.PodKey]model.Addrs
	used     map[netip.Addr]model.PodKey
	last     model.Addrs // the newest address per family; the search starts after it
}

// New returns an allocator without prefixes.
func New() *Allocator {
	return &Allocator{owners: map[model.PodKey]model.Addrs{}, used: map[netip.Addr]model.PodKey{}}
}

// SetPrefixes sets what new addresses are taken from. Owners keep what they
// have, also outside of the new prefixes (a node that was created again).
func (a *Allocator) SetPrefixes(p model.Prefixes) { a.prefixes = p }

// Prefixes returns what new addresses are taken from.
func (a *Allocator) Prefixes() model.Prefixes { return a.prefixes }

// Allocate returns the owner's addresses, one for every family that has a
// prefix, and picks them if it has none. Either all families succeed or
// nothing changes. Errors: ErrNoPrefix, *ExhaustedError.
func (a *Allocator) Allocate(owner model.PodKey) (model.Addrs, error) {
	if held, ok := a.owners[owner]; ok {
		return held, nil
	}
	prefixes := a.prefixes.All()
	if len(prefixes) == 0 {
		return model.Addrs{}, ErrNoPrefix
	}
	var got model.Addrs
	for _, p := range prefixes {
		addr, ok := a.pick(p)
		if !ok {
			return model.Addrs{}, &ExhaustedError{Prefix: p, Capacity: Capacity(p)}
		}
		got = got.Add(addr)
	}
	a.take(owner, got)
	return got, nil
}

// pick finds a free address of p. It looks at no more addresses than are used.
func (a *Allocator) pick(p netip.Prefix) (netip.Addr, bool) {
	first, last, ok := hosts(p)
	if !ok {
		return netip.Addr{}, false
	}
	start := a.last.V4
	if p.Addr().Is6() {
		start = a.last.V6
	}
	if start = start.Next(); !start.IsValid() || start.Less(first) || last.Less(start) {
		start = first
	}
	for addr := start; ; {
		if _, taken := a.used[addr]; !taken {
			return addr, true
		}
		if addr == last {
			addr = first
		} else {
			addr = addr.Next()
		}
		if addr == start {
			return netip.Addr{}, false
		}
	}
}

func (a *Allocator) take(owner model.PodKey, addrs model.Addrs) {
	a.owners[owner] = addrs
	for _, addr := range addrs.All() {
		a.used[addr] = owner
	}
	if addrs.V4.IsValid() {
		a.last.V4 = addrs.V4
	}
	if addrs.V6.IsValid() {
		a.last.V6 = addrs.V6
	}
}

// Restore gives owner the addresses that it had, whether or not they lie
// inside the prefixes. Restore in the order in which the addresses were handed
// out, then the search goes on where it was. Error: *ConflictError.
func (a *Allocator) Restore(owner model.PodKey, addrs model.Addrs) error {
	for _, addr := range addrs.All() {
		if other, taken := a.used[addr]; taken && other != owner {
			return &ConflictError{Addr: addr, Owner: owner, Holder: other}
		}
	}
	a.Release(owner)
	a.take(owner, addrs)
	return nil
}

// Release frees what owner holds. Releasing nothing is fine.
func (a *Allocator) Release(owner model.PodKey) {
	for _, addr := range a.owners[owner].All() {
		delete(a.used, addr)
	}
	delete(a.owners, owner)
}

// Outside returns the owners that hold an address outside of the prefixes.
func (a *Allocator) Outside() []model.PodKey {
	var out []model.PodKey
	for owner, addrs := range a.owners {
		if slices.ContainsFunc(addrs.All(), func(x netip.Addr) bool { return !a.prefixes.Contains(x) }) {
			out = append(out, owner)
		}
	}
	slices.SortFunc(out, func(x, y model.PodKey) int {
		return cmp.Or(cmp.Compare(x.ContainerID, y.ContainerID), cmp.Compare(x.IfName, y.IfName))
	})
	return out
}

// Usage says how full a prefix is.
type Usage struct {
	Prefix   netip.Prefix
	Used     uint64
	Capacity uint64
}

// Usage returns the usage of every prefix, IPv4 first.
func (a *Allocator) Usage() []Usage {
	var out []Usage
	for _, p := range a.prefixes.All() {
		u := Usage{Prefix: p, Capacity: Capacity(p)}
		for addr := range a.used {
			if p.Contains(addr) {
				u.Used++
			}
		}
		out = append(out, u)
	}
	return out
}

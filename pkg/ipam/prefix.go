package ipam

import (
	"encoding/binary"
	"math"
	"net/netip"
)

// hosts returns the first and the last address of p that a pod may have. The
// network address (for IPv6 the subnet-router anycast address, RFC 4291 section
// 2.6.1), the first host address, which belongs to the node, and the IPv4
// broadcast address are never handed out.
func hosts(p netip.Prefix) (first, last netip.Addr, ok bool) {
	p = p.Masked()
	first = p.Addr().Next().Next()
	last = lastAddr(p)
	if p.Addr().Is4() {
		last = last.Prev()
	}
	ok = first.IsValid() && last.IsValid() && p.Contains(first) && !last.Less(first)
	return first, last, ok
}

// lastAddr is p with all host bits set.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// Capacity is the number of addresses of p that pods may have, MaxUint64 if
// there are more.
func Capacity(p netip.Prefix) uint64 {
	first, last, ok := hosts(p)
	if !ok {
		return 0
	}
	f, l := first.As16(), last.As16()
	if [8]byte(f[:8]) != [8]byte(l[:8]) {
		return math.MaxUint64
	}
	return binary.BigEndian.Uint64(l[8:]) - binary.BigEndian.Uint64(f[8:]) + 1
}

package service

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/hash"
)

// Slots is a list of backends, packed: for each slot the address and the port
// in network order. A new connection takes a slot at random.
type Slots string

// Backend is one address and port.
type Backend struct {
	AddrPort netip.AddrPort
	Weight   uint32 // relative to the others
}

const (
	// exact is the number of slots up to which there is a size class for every
	// number; above it sizes are powers of two.
	exact = 64
	// largest is the largest size class. With tolerance it is enough for 6,500
	// equal backends.
	largest = 1 << 17
	// tolerance is how far the share of a backend may be from its weight.
	tolerance = 0.05
)

// Classes are the numbers of slots that there are.
func Classes() []int {
	var out []int
	for n := 1; n <= exact; n++ {
		out = append(out, n)
	}
	for n := 2 * exact; n <= largest; n *= 2 {
		out = append(out, n)
	}
	return out
}

// Spread gives every backend its share of the fewest slots with which all
// shares are within 5 % of the weights; in the largest class they may be off
// further, and it is false. Backends are taken in order of their addresses, and
// slots of large classes are filled the way of Maglev (Eisenbud et al., NSDI
// 2016), so that a backend that comes or goes moves few slots.
func Spread(backends []Backend) (slots Slots, even bool) {
	backends = slices.DeleteFunc(slices.Clone(backends), func(b Backend) bool { return b.Weight == 0 })
	if len(backends) == 0 {
		return "", true
	}
	slices.SortFunc(backends, func(a, b Backend) int { return a.AddrPort.Compare(b.AddrPort) })
	backends = slices.CompactFunc(backends, func(a, b Backend) bool { return a.AddrPort == b.AddrPort })
	counts, even := share(backends)
	n := 0
	for _, c := range counts {
		n += c
	}
	if n > exact {
		return maglev(backends, counts, n), even
	}
	var out []byte
	for i, b := range backends {
		for range counts[i] {
			out = AppendSlot(out, b.AddrPort)
		}
	}
	return Slots(out), even
}

// share returns how many slots each backend gets.
func share(backends []Backend) (counts []int, even bool) {
	total, equal := uint64(0), true
	for _, b := range backends {
		total += uint64(b.Weight)
		equal = equal && b.Weight == backends[0].Weight
	}
	if n := len(backends); equal && n <= exact {
		return slices.Repeat([]int{1}, n), true
	}
	for _, n := range Classes() {
		if n < len(backends) {
			continue
		}
		if counts, even = apportion(backends, total, n); even {
			return counts, true
		}
	}
	return counts, false
}

// apportion shares n slots out by weight, the remainder to those that lack most,
// and tells whether that is even enough.
func apportion(backends []Backend, total uint64, n int) (counts []int, even bool) {
	counts = make([]int, len(backends))
	order := make([]int, len(backends))
	left := n
	lack := func(i int) uint64 { // times total
		return uint64(backends[i].Weight)*uint64(n) - uint64(counts[i])*total
	}
	for i, b := range backends {
		counts[i] = int(uint64(b.Weight) * uint64(n) / total)
		left -= counts[i]
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch x, y := lack(a), lack(b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	for _, i := range order[:left] {
		counts[i]++
	}
	even = true
	for i, b := range backends {
		ideal := float64(b.Weight) * float64(n) / float64(total)
		if off := float64(counts[i])/ideal - 1; off > tolerance || off < -tolerance {
			even = false
		}
	}
	return counts, even
}

// maglev fills n slots, a power of two: backends take turns, each taking the
// next free slot of its own order, which depends on nothing but its address.
func maglev(backends []Backend, counts []int, n int) Slots {
	owner := slices.Repeat([]int{-1}, n)
	next, step := make([]uint64, len(backends)), make([]uint64, len(backends))
	for i, b := range backends {
		sum := hash.Sum(AppendSlot(nil, b.AddrPort))
		next[i], step[i] = sum%uint64(n), hash.Mix(sum)|1 // odd: it comes to every slot
	}
	for free := n; free > 0; {
		for i := range backends {
			if counts[i] == 0 {
				continue
			}
			for owner[next[i]] >= 0 {
				next[i] = (next[i] + step[i]) % uint64(n)
			}
			owner[next[i]] = i
			counts[i]--
			free--
		}
	}
	var out []byte
	for _, i := range owner {
		out = AppendSlot(out, backends[i].AddrPort)
	}
	return Slots(out)
}

// AppendSlot adds one slot to a list.
func AppendSlot(b []byte, a netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(append(b, a.Addr().AsSlice()...), a.Port())
}

// String shows the first bytes: it does not know the family.
func (s Slots) String() string { return fmt.Sprintf("%d bytes %.48x", len(s), string(s)) }

// All returns the backends of all slots. six is the family of the front.
func (s Slots) All(six bool) []netip.AddrPort {
	n := slotBytes(six)
	out := make([]netip.AddrPort, 0, len(s)/n)
	for ; len(s) >= n; s = s[n:] {
		addr, _ := netip.AddrFromSlice([]byte(s[:n-2]))
		out = append(out, netip.AddrPortFrom(addr, binary.BigEndian.Uint16([]byte(s[n-2:n]))))
	}
	return out
}

// Len is the number of slots.
func (s Slots) Len(six bool) int { return len(s) / slotBytes(six) }

// At is one slot: the address and the port in network order.
func (s Slots) At(i int, six bool) string { n := slotBytes(six); return string(s[i*n : (i+1)*n]) }

func slotBytes(six bool) int {
	if six {
		return 16 + 2
	}
	return 4 + 2
}

package nft

import (
	"cmp"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// shape is how the keys of a set are built.
type shape uint8

const (
	deviceAddr shape = iota // 16 bytes of name, address
	oneAddr                 // address
	ranges                  // start, and the address behind the end
	addrPrefix              // outer address, inner network, length of the inner prefix
)

// layout is the shape of a set and how long its addresses are.
type layout struct {
	shape        shape
	first, inner int // bytes: the address, and the inner one of addrPrefix
}

func layoutOf(s plan.Set) (layout, bool) {
	l, ok := map[plan.Set]layout{
		plan.Pods4: {deviceAddr, 4, 0}, plan.Pods6: {deviceAddr, 16, 0},
		plan.Nodes4: {oneAddr, 4, 0}, plan.Nodes6: {oneAddr, 16, 0},
		plan.Direct4: {oneAddr, 4, 0}, plan.Direct6: {oneAddr, 16, 0},
		plan.Announced4: {oneAddr, 4, 0}, plan.Announced6: {oneAddr, 16, 0},
		plan.Local4: {ranges, 4, 0}, plan.Local6: {ranges, 16, 0},
		plan.Mesh4: {ranges, 4, 0}, plan.Mesh6: {ranges, 16, 0},
		plan.Decap44: {addrPrefix, 4, 4}, plan.Decap46: {addrPrefix, 4, 16},
		plan.Decap64: {addrPrefix, 16, 4}, plan.Decap66: {addrPrefix, 16, 16},
	}[s]
	return l, ok
}

func allSets() []*nftables.Set {
	names := []plan.Set{plan.Pods4, plan.Pods6, plan.Local4, plan.Local6, plan.Mesh4, plan.Mesh6, plan.Direct4, plan.Direct6,
		plan.Nodes4, plan.Nodes6, plan.Decap44, plan.Decap46, plan.Decap64, plan.Decap66, plan.Announced4, plan.Announced6}
	out := make([]*nftables.Set, 0, len(names))
	for _, n := range names {
		out = append(out, newSet(n))
	}
	return out
}

func newSet(name plan.Set) *nftables.Set {
	l, _ := layoutOf(name)
	s := &nftables.Set{Table: inet(), Name: string(name)}
	switch l.shape {
	case deviceAddr:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, addrType(l.first))
	case oneAddr:
		s.KeyType = addrType(l.first)
	case ranges:
		s.KeyType, s.Interval = addrType(l.first), true
	case addrPrefix:
		s.KeyType = nftables.MustConcatSetType(addrType(l.first), addrType(l.inner), nftables.TypeMark)
	}
	return s
}

func addrType(bytes int) nftables.SetDatatype {
	if bytes == 4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

func inet() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

// encode returns the elements that make up one key: two for a range, its start
// and what comes behind it.
func encode(k plan.FilterKey) []nftables.SetElement {
	l, _ := layoutOf(k.Set)
	switch l.shape {
	case deviceAddr:
		return []nftables.SetElement{{Key: append(deviceName(k.Dev), k.Addr.AsSlice()...)}}
	case oneAddr:
		return []nftables.SetElement{{Key: k.Addr.AsSlice()}}
	case addrPrefix:
		return []nftables.SetElement{{Key: slices.Concat(k.Addr.AsSlice(), k.Range.From.AsSlice(), lengthKey(length(k.Range)))}}
	}
	out := []nftables.SetElement{{Key: k.Range.From.AsSlice()}}
	if behind := k.Range.To.Next(); behind.IsValid() {
		out = append(out, nftables.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
	}
	return out
}

// element is one as the kernel shows it.
type element struct {
	key, keyEnd []byte
	end         bool   // marks what lies behind a range
	data        []byte // of maps
	chain       string // of verdict maps
	verdict     int32
}

// decode returns the keys that elements of a set stand for. What does not fit
// the layout is left out: it cannot be of the set that we made.
func decode(set plan.Set, elements []element) []plan.FilterKey {
	l, _ := layoutOf(set)
	if l.shape == ranges {
		return decodeRanges(set, l, elements)
	}
	out := make([]plan.FilterKey, 0, len(elements))
	for _, e := range elements {
		k := plan.FilterKey{Set: set}
		switch {
		case l.shape == deviceAddr && len(e.key) == unix.IFNAMSIZ+l.first:
			k.Dev, k.Addr = nl.StringOf(e.key[:unix.IFNAMSIZ]), nl.AddrOf(e.key[unix.IFNAMSIZ:])
		case l.shape == oneAddr && len(e.key) == l.first:
			k.Addr = nl.AddrOf(e.key)
		case l.shape == addrPrefix && len(e.key) == l.first+l.inner+4:
			k.Addr = nl.AddrOf(e.key[:l.first])
			k.Range = rangeOf(nl.AddrOf(e.key[l.first:l.first+l.inner]), int(nl.U32Of(e.key[l.first+l.inner:])))
		default:
			continue
		}
		out = append(out, k)
	}
	return out
}

// decodeRanges pairs starts with ends. The kernel may hold, and show first, an
// end at the very beginning of the address space.
func decodeRanges(set plan.Set, l layout, elements []element) []plan.FilterKey {
	elements = slices.DeleteFunc(slices.Clone(elements), func(e element) bool { return len(e.key) != l.first })
	slices.SortFunc(elements, func(a, b element) int {
		return cmp.Or(slices.Compare(a.key, b.key), boolCompare(b.end, a.end))
	})
	var out []plan.FilterKey
	for i, e := range elements {
		if e.end {
			continue
		}
		to := last(l.first)
		if i+1 < len(elements) {
			to = nl.AddrOf(elements[i+1].key).Prev()
		}
		out = append(out, plan.FilterKey{Set: set, Range: plan.Range{From: nl.AddrOf(e.key), To: to}})
	}
	return out
}

// length is that of the prefix which r is.
func length(r plan.Range) int {
	from, to := r.From.AsSlice(), r.To.AsSlice()
	n := 0
	for n < len(from)*8 && from[n/8]>>(7-n%8)&1 == to[n/8]>>(7-n%8)&1 {
		n++
	}
	return n
}

// lengthKey is a prefix length as a field of a key: a number in host order, like
// a mark.
func lengthKey(bits int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(bits)) }

func rangeOf(a netip.Addr, bits int) plan.Range {
	mask := netmask(len(a.AsSlice()), bits)
	to := a.AsSlice()
	for i := range to {
		to[i] |= ^mask[i]
	}
	return plan.Range{From: a, To: nl.AddrOf(to)}
}

func netmask(bytes, bits int) []byte { return net.CIDRMask(min(bits, 8*bytes), 8*bytes) }

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// last is the highest address of that many bytes.
func last(bytes int) netip.Addr {
	return nl.AddrOf(slices.Repeat([]byte{0xff}, bytes))
}

// sameShape tells whether the set that the kernel shows is one that we would
// make under its name.
func sameShape(s setInfo, wanted []*nftables.Set) bool {
	i := slices.IndexFunc(wanted, func(w *nftables.Set) bool { return w.Name == s.name })
	if i < 0 {
		return false
	}
	want := wanted[i]
	verdicts := want.IsMap && want.DataType == nftables.TypeVerdict // whose length is the kernel's own affair
	return s.flags == setFlags(want) && s.keyLength == want.KeyType.Bytes && (verdicts || s.dataLength == want.DataType.Bytes)
}

func setFlags(s *nftables.Set) uint32 {
	var flags uint32
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.IsMap {
		flags |= unix.NFT_SET_MAP
	}
	if s.HasTimeout {
		flags |= unix.NFT_SET_TIMEOUT
	}
	if s.Dynamic {
		flags |= unix.NFT_SET_EVAL
	}
	if s.Concatenation {
		flags |= nftables.NFT_SET_CONCAT
	}
	return flags
}

func be32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

package nl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Attrs is a run of netlink attributes being built, in the order of the calls.
type Attrs []byte

// Bytes appends an attribute, padded to four bytes.
func (a *Attrs) Bytes(typ uint16, data []byte) {
	b := binary.NativeEndian.AppendUint16(*a, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	*a = b
}

// U8 appends a byte.
func (a *Attrs) U8(typ uint16, v uint8) { a.Bytes(typ, []byte{v}) }

// U32 appends a number in host order.
func (a *Attrs) U32(typ uint16, v uint32) { a.Bytes(typ, binary.NativeEndian.AppendUint32(nil, v)) }

// U64BE appends a number in network order.
func (a *Attrs) U64BE(typ uint16, v uint64) { a.Bytes(typ, binary.BigEndian.AppendUint64(nil, v)) }

// Addr appends an address, nothing if it is zero.
func (a *Attrs) Addr(typ uint16, v netip.Addr) {
	if v.IsValid() {
		a.Bytes(typ, v.AsSlice())
	}
}

// Nest appends an attribute that holds what fill appends.
func (a *Attrs) Nest(typ uint16, fill func(*Attrs)) {
	var in Attrs
	fill(&in)
	a.Bytes(typ|unix.NLA_F_NESTED, in)
}

// Each yields the attributes in b: type without flags, and value. A truncated
// attribute ends it.
func Each(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofRtAttr || n > len(b) || !yield(typ, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
		}
	}
}

// U32Of reads a number in host order, 0 if b has another size.
func U32Of(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// AddrOf reads an address, the zero one if b has another size.
func AddrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// StringOf reads a string that may end in a zero byte.
func StringOf(b []byte) string { return unix.ByteSliceToString(b) }

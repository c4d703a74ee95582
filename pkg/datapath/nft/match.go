package nft

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Registers of 4 bytes, of which there are 16. A key of several fields lies in
// consecutive ones.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = reg0 + 1 // behind an IPv4 address
	reg2 = reg0 + 2
	reg4 = reg0 + 4 // behind an IPv6 address or a device name
	reg5 = reg0 + 5
	reg8 = reg0 + 8
)

// Offsets behind the outer UDP header's start: UDP 8, VXLAN 8 (RFC 7348,
// section 5), inner Ethernet 14.
const (
	vniOffset        = 8 + 4
	etherTypeOffset  = 8 + 8 + 12
	inner4SrcOffset  = 8 + 8 + 14 + 12
	inner6SrcOffset  = 8 + 8 + 14 + 8
	outer4SrcOffset  = 12 // behind the start of the IP header
	outer4DstOffset  = 16
	outer6SrcOffset  = 8
	outer6DstOffset  = 24
	udpDstPortOffset = 2
)

type exprs = []expr.Any

// join makes one rule of parts.
func join(parts ...exprs) exprs {
	var out exprs
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func metaIs(key expr.MetaKey, value []byte) exprs {
	return exprs{&expr.Meta{Key: key, Register: reg0}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: value}}
}

func isIPv4() exprs { return metaIs(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}) }
func isIPv6() exprs { return metaIs(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6}) }

// devices whose name begins with prefix; comparing fewer than 16 bytes does that.
func fromDevices(prefix string) exprs { return metaIs(expr.MetaKeyIIFNAME, []byte(prefix)) }
func toDevices(prefix string) exprs   { return metaIs(expr.MetaKeyOIFNAME, []byte(prefix)) }

func fromDevice(name string) exprs { return metaIs(expr.MetaKeyIIFNAME, deviceName(name)) }
func toDevice(name string) exprs   { return metaIs(expr.MetaKeyOIFNAME, deviceName(name)) }

// deviceName is a name as the kernel compares it: 16 bytes.
func deviceName(name string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, name)
	return out
}

func load(base expr.PayloadBase, offset, length, register uint32) exprs {
	return exprs{&expr.Payload{OperationType: expr.PayloadLoad, Base: base, Offset: offset, Len: length, DestRegister: register}}
}

func network(offset, length, register uint32) exprs {
	return load(expr.PayloadBaseNetworkHeader, offset, length, register)
}

func transport(offset, length, register uint32) exprs {
	return load(expr.PayloadBaseTransportHeader, offset, length, register)
}

func src4(register uint32) exprs { return network(outer4SrcOffset, 4, register) }
func src6(register uint32) exprs { return network(outer6SrcOffset, 16, register) }
func dst4(register uint32) exprs { return network(outer4DstOffset, 4, register) }
func dst6(register uint32) exprs { return network(outer6DstOffset, 16, register) }

func equal(value []byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: value}}
}

func notEqual(value []byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: value}}
}

func in(set plan.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg0, SetName: string(set)}}
}

func notIn(set plan.Set) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg0, SetName: string(set), Invert: true}}
}

// masked keeps the network part of an address in a register.
func masked(register uint32, bytes, bits int) exprs {
	return exprs{&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(bytes),
		Mask: netmask(bytes, bits), Xor: make([]byte, bytes)}}
}

func constant(register uint32, value []byte) exprs {
	return exprs{&expr.Immediate{Register: register, Data: value}}
}

func udpTo(port uint16) exprs {
	return join(metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}),
		transport(udpDstPortOffset, 2, reg0), equal(binary.BigEndian.AppendUint16(nil, port)))
}

func etherType(typ uint16) exprs {
	return join(transport(etherTypeOffset, 2, reg0), equal(binary.BigEndian.AppendUint16(nil, typ)))
}

func verdict(kind expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: kind}} }

func leave() exprs            { return verdict(expr.VerdictReturn) }
func jump(chain string) exprs { return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func notrack() exprs          { return exprs{&expr.Notrack{}} }

// drop counts the packet under a name and drops it.
func drop(counter string) exprs {
	return join(count(counter), verdict(expr.VerdictDrop))
}

func count(counter string) exprs {
	return exprs{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}
}

// stateNew is the first packet of a connection.
func stateNew() exprs { return ctBit(expr.CtKeySTATE, expr.CtStateBitNEW) }

// translated is a packet of a connection with another destination than the
// client gave it (IPS_DST_NAT).
func translated() exprs { return ctBit(expr.CtKeySTATUS, 1<<5) }

func ctBit(key expr.CtKey, bit uint32) exprs {
	return exprs{&expr.Ct{Key: key, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)}}
}

func metaIsNot(key expr.MetaKey, value []byte) exprs {
	return exprs{&expr.Meta{Key: key, Register: reg0}, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: value}}
}

package socketlb

import (
	"encoding/binary"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/service"
)

// endpointOf is a in the programs' form: IPv4 mapped, both in network order.
func endpointOf(a netip.AddrPort) objectEndpoint {
	b := a.Addr().As16()
	var e objectEndpoint
	for i := range e.Addr {
		e.Addr[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	e.Port = networkOrder(a.Port())
	return e
}

func (e objectEndpoint) addrPort() netip.AddrPort {
	var b [16]byte
	for i, word := range e.Addr {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), networkOrder(e.Port))
}

// networkOrder turns a port into network order, or back.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func frontOf(k service.FrontKey) objectFront {
	return objectFront{At: endpointOf(netip.AddrPortFrom(k.Addr, k.Port)), Protocol: k.Protocol}
}

func (f objectFront) key() service.FrontKey {
	at := f.At.addrPort()
	return service.FrontKey{Addr: at.Addr(), Port: at.Port(), Protocol: f.Protocol}
}

// slotsOf are the endpoints of slots as rows hold them.
func slotsOf(slots service.Slots, six bool) []objectEndpoint {
	all := slots.All(six)
	out := make([]objectEndpoint, 0, len(all))
	for _, a := range all {
		out = append(out, endpointOf(a))
	}
	return out
}

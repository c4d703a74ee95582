package socketlb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// What sock_diag(7) wants and says (linux/inet_diag.h).
const (
	sockDestroy = 21 // SOCK_DESTROY, with CONFIG_INET_DIAG_DESTROY
	socketID    = 48 // bytes; behind 8 bytes of a request, and 4 of an answer
	answerHead  = 4
	portAt      = answerHead + 2 // of the other end
	addrAt      = answerHead + 4 + 16
	cookieAt    = answerHead + socketID - 8
)

// ErrCantEnd: the kernel has no way to end a socket.
var ErrCantEnd = errors.New("the kernel can't end sockets (CONFIG_INET_DIAG_DESTROY, CONFIG_INET_UDP_DIAG)")

// CutStale ends the connected UDP sockets that were sent to a backend which
// their front does not lead to any more: they would go on sending there for
// ever. Their owners get ECONNABORTED. spaces are the network namespaces of the
// node. It returns how many it has ended. Sockets that went to an address of a
// backend themselves are left alone.
func CutStale(pins string, fronts map[service.FrontKey]service.Front, spaces func(yield func(nl.Space) bool)) (int, error) {
	connected, err := ebpf.LoadPinnedMap(filepath.Join(pins, "connected"), nil)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil // no socket was ever sent anywhere
	}
	if err != nil {
		return 0, fmt.Errorf("open map connected: %w", err)
	}
	defer connected.Close()
	stale := map[uint64]objectPeer{} // by cookie
	if err := each(connected, func(cookie uint64, p objectPeer) {
		if !leads(p, fronts) {
			stale[cookie] = p
		}
	}); err != nil || len(stale) == 0 {
		return 0, err
	}
	n := 0
	for space := range spaces {
		ended, err := cutIn(space, stale)
		n += ended
		if err != nil {
			return n, err
		}
	}
	for cookie, p := range stale { // gone, or connected to something else
		var now objectPeer
		if err := connected.Lookup(cookie, &now); err != nil || now != p {
			continue
		}
		if err := remove(connected, []uint64{cookie}); err != nil {
			return n, err
		}
	}
	return n, nil
}

// leads tells whether the front that a socket means still leads to its backend.
func leads(p objectPeer, fronts map[service.FrontKey]service.Front) bool {
	key := objectFront{At: p.Front, Protocol: udp}.key()
	slots, backend, six := fronts[key].Slots, string(service.AppendSlot(nil, p.Backend.addrPort())), key.Addr.Is6()
	for i := range slots.Len(six) {
		if slots.At(i, six) == backend {
			return true
		}
	}
	return false
}

// cutIn ends those of a namespace that are still connected to the backend.
func cutIn(space nl.Space, stale map[uint64]objectPeer) (ended int, err error) {
	c, err := space.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var requests []nl.Request
		begin := func() { requests = nil }
		err := c.Dump(nl.Request{Type: unix.SOCK_DIAG_BY_FAMILY, Body: aboutUDP(family, make([]byte, socketID))}, begin, func(_ uint16, answer []byte) error {
			if len(answer) < answerHead+socketID {
				return nil
			}
			p, known := stale[binary.NativeEndian.Uint64(answer[cookieAt:])]
			if known && otherEnd(answer, family) == p.Backend.addrPort() {
				requests = append(requests, nl.Request{Type: sockDestroy, Body: aboutUDP(family, answer[answerHead:answerHead+socketID])})
			}
			return nil
		})
		if err != nil {
			return ended, fmt.Errorf("list sockets: %w", cantEnd(err))
		}
		for _, err := range c.Batch(requests) {
			if err != nil && !errors.Is(err, unix.ENOENT) { // its owner was quicker
				return ended, fmt.Errorf("end socket: %w", cantEnd(err))
			}
			ended++
		}
	}
	return ended, nil
}

// cantEnd tells what a kernel says that lacks it (sock_diag_rcv_msg and
// inet_diag_cmd_exact in Linux).
func cantEnd(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return ErrCantEnd
	}
	return err
}

// otherEnd is what a socket is connected to.
func otherEnd(answer []byte, family uint8) netip.AddrPort {
	addr := netip.AddrFrom16([16]byte(answer[addrAt:])).Unmap()
	if family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(answer[addrAt:]))
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(answer[portAt:]))
}

// aboutUDP asks something about UDP sockets in all states: those that fit an id.
func aboutUDP(family uint8, id []byte) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, udp, 0, 0}, ^uint32(0))
	return append(b, id...)
}

package socketlb

import (
	"encoding/binary"
	"errors"
	"fmt"
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
	cookieAt    = answerHead + socketID - 8
)

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
	stale := map[uint64]bool{} // by cookie
	if err := each(connected, func(cookie uint64, p objectPeer) {
		if !leads(p, fronts) {
			stale[cookie] = true
		}
	}); err != nil {
		return 0, err
	}
	n := 0
	for space := range spaces {
		if len(stale) == 0 {
			break
		}
		ended, err := cutIn(space, stale)
		if err != nil {
			return n, err
		}
		for _, cookie := range ended {
			delete(stale, cookie)
			if err := remove(connected, []uint64{cookie}); err != nil {
				return n, err
			}
			n++
		}
	}
	var gone []uint64 // closed while their release was not looked at
	for cookie := range stale {
		gone = append(gone, cookie)
	}
	return n, remove(connected, gone)
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

// cutIn ends those of a namespace and returns which there were.
func cutIn(space nl.Space, stale map[uint64]bool) (ended []uint64, err error) {
	c, err := space.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var found []uint64
		var requests []nl.Request
		begin := func() { found, requests = nil, nil }
		err := c.Dump(nl.Request{Type: unix.SOCK_DIAG_BY_FAMILY, Body: aboutUDP(family, make([]byte, socketID))}, begin, func(_ uint16, answer []byte) error {
			if len(answer) < answerHead+socketID {
				return nil
			}
			if cookie := binary.NativeEndian.Uint64(answer[cookieAt:]); stale[cookie] {
				found = append(found, cookie)
				requests = append(requests, nl.Request{Type: sockDestroy, Body: aboutUDP(family, answer[answerHead:answerHead+socketID])})
			}
			return nil
		})
		if err != nil {
			return ended, fmt.Errorf("list sockets: %w", err)
		}
		for i, err := range c.Batch(requests) {
			if err != nil && !errors.Is(err, unix.ENOENT) { // its owner was quicker
				return ended, fmt.Errorf("end socket: %w", err)
			}
			ended = append(ended, found[i])
		}
	}
	return ended, nil
}

// aboutUDP asks something about UDP sockets in all states: those that fit an id.
func aboutUDP(family uint8, id []byte) []byte {
	b := binary.NativeEndian.AppendUint32([]byte{family, udp, 0, 0}, ^uint32(0))
	return append(b, id...)
}

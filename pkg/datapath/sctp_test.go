package datapath_test

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// Chunks of SCTP (RFC 9260, section 3.2).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctp makes a packet that begins an association or answers the first one. Ports
// are in the first four bytes, as in TCP.
func sctp(from, to uint16, tag uint32, chunk byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, chunk, 0, 0, 20)
	for _, v := range []uint32{7, 65535, 1<<16 | 1, 1} { // tag for answers, window, streams, first number
		b = binary.BigEndian.AppendUint32(b, v)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// raw is a socket for whole SCTP packets: many kernels have no other, and no pod
// needs the node's for that.
func raw(t testing.TB, s nl.Space, six bool) int {
	t.Helper()
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	var fd int
	must(t, s.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	}))
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	return fd
}

// packet is the next one that arrives: where from, and without the IP header,
// which raw sockets of IPv4 have.
func packet(t testing.TB, fd int, six bool) (netip.Addr, []byte) {
	t.Helper()
	b := make([]byte, 200)
	n, from, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		t.Fatalf("no SCTP packet: %v", err)
	}
	if !six {
		return addrPortOf(from).Addr(), b[20:n]
	}
	return addrPortOf(from).Addr(), b[:n]
}

// TestServiceSCTP: SCTP is translated as TCP is, in both directions, with its
// checksum.
func TestServiceSCTP(t *testing.T) {
	l := newServiceLab(t, model.EncapDirect)
	for _, tt := range []struct {
		vip  string
		b, a netip.Addr
	}{
		{"10.96.0.7", l.b.row.IPs.V4, l.remote.row.IPs.V4}, {"fd00:96::7", l.b.row.IPs.V6, l.remote.row.IPs.V6},
	} {
		vip, six := netip.MustParseAddr(tt.vip), tt.b.Is6()
		family := unix.AF_INET
		if six {
			family = unix.AF_INET6
		}
		key := service.FrontKey{Addr: vip, Protocol: unix.IPPROTO_SCTP, Port: 3868}
		converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, key: to(t, netip.AddrPortFrom(tt.a, 3869).String())})
		client, server := raw(t, l.b.space, six), raw(t, l.remote.space, six)
		must(t, unix.Sendto(client, sctp(5000, 3868, 0, sctpInit), 0, sockaddrOf(family, netip.AddrPortFrom(vip, 0))))
		from, p := packet(t, server, six)
		if want := sctp(5000, 3869, 0, sctpInit); from != tt.b || string(p) != string(want) {
			t.Errorf("the backend got % x from %v\nwant % x from %v", p, from, want, tt.b)
		}
		must(t, unix.Sendto(server, sctp(3869, 5000, 7, sctpInitAck), 0, sockaddrOf(family, netip.AddrPortFrom(tt.b, 0))))
		from, p = packet(t, client, six)
		if want := sctp(3868, 5000, 7, sctpInitAck); from != vip || string(p) != string(want) {
			t.Errorf("the client got % x from %v\nwant % x from %v", p, from, want, vip)
		}
	}
}

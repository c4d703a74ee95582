// Package gratuitous tells neighbours, unasked, that an address is now at a
// device of this node: by ARP announcements (RFC 5227) and by unsolicited
// neighbour advertisements (RFC 4861, section 7.2.6). It decides nothing and
// holds nothing.
package gratuitous

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// Send tells the neighbours on a device of the namespace once.
func Send(space nl.Space, dev string, addr netip.Addr) error {
	err := space.Do(func() error {
		i, err := net.InterfaceByName(dev)
		switch {
		case err != nil:
			return err
		case len(i.HardwareAddr) != 6:
			return fmt.Errorf("it has no Ethernet address")
		case addr.Is4():
			return sendARP(i, addr)
		}
		return sendAdvertisement(i, addr)
	})
	if err != nil {
		return fmt.Errorf("announce %v on %s: %w", addr, dev, err)
	}
	return nil
}

const (
	arpRequest = 1
	arpReply   = 2
)

// sendARP sends a request and a reply: there are neighbours that heed only the
// one and some that heed only the other.
func sendARP(i *net.Interface, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // 0: receives nothing
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: i.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	for _, operation := range []uint16{arpRequest, arpReply} {
		if err := unix.Sendto(fd, arpMessage(operation, i.HardwareAddr, addr), 0, to); err != nil {
			return fmt.Errorf("send ARP: %w", err)
		}
	}
	return nil
}

// arpMessage has addr for both sender and target (RFC 826, RFC 5227 section 3).
func arpMessage(operation uint16, mac net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, unix.ARPHRD_ETHER, unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), addr.AsSlice()...)
	return append(append(b, mac...), addr.AsSlice()...)
}

// sendAdvertisement lets the kernel fill in source and checksum.
func sendAdvertisement(i *net.Interface, addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("open ICMPv6 socket: %w", err)
	}
	defer unix.Close(fd)
	const linkOnly = 255 // hop limit by which neighbours know that it is from the link
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, linkOnly); err != nil {
		return fmt.Errorf("set hop limit: %w", err)
	}
	allNodes := netip.MustParseAddr("ff02::1").As16()
	if err := unix.Sendto(fd, advertisement(i.HardwareAddr, addr), 0, &unix.SockaddrInet6{Addr: allNodes, ZoneId: uint32(i.Index)}); err != nil {
		return fmt.Errorf("send neighbour advertisement: %w", err)
	}
	return nil
}

// advertisement has the override flag, so that neighbours who know the address
// elsewhere believe it at once.
func advertisement(mac net.HardwareAddr, addr netip.Addr) []byte {
	const neighbourAdvertisement, override, targetLinkAddress = 136, 0x20, 2
	b := []byte{neighbourAdvertisement, 0, 0, 0, override, 0, 0, 0}
	b = append(b, addr.AsSlice()...)
	return append(append(b, targetLinkAddress, 1), mac...)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

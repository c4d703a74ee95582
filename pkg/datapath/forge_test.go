package datapath_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/vishvananda/netlink"
)

// frame is what a VXLAN packet carries: UDP from src to dst, port 9.
type frame struct {
	vni      uint32
	from, to model.NodeKey
	src, dst netip.Addr
}

const innerPort = 9

// bytes is the payload of the outer UDP packet.
func (f frame) bytes() []byte {
	b := []byte{0x08, 0, 0, 0, byte(f.vni >> 16), byte(f.vni >> 8), byte(f.vni), 0}
	to, from := f.to.TunnelMAC(), f.from.TunnelMAC()
	b = append(append(b, to[:]...), from[:]...)
	udp := binary.BigEndian.AppendUint16(nil, innerPort)
	udp = binary.BigEndian.AppendUint16(udp, innerPort)
	udp = append(udp, 0, 8+6, 0, 0)
	udp = append(udp, "forged"...)
	if f.src.Is4() {
		ip := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, f.src.AsSlice(), f.dst.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return slices.Concat(b, []byte{0x08, 0x00}, ip, udp)
	}
	pseudo := slices.Concat(f.src.AsSlice(), f.dst.AsSlice(), []byte{0, 0, 0, byte(len(udp)), 0, 0, 0, unix.IPPROTO_UDP})
	binary.BigEndian.PutUint16(udp[6:], checksum(slices.Concat(pseudo, udp)))
	ip := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}, f.src.AsSlice(), f.dst.AsSlice())
	return slices.Concat(b, []byte{0x86, 0xdd}, ip, udp)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// sendUDP sends one packet from a namespace to a port.
func sendUDP(t testing.TB, s nl.Space, to netip.AddrPort, payload []byte) {
	t.Helper()
	must(t, s.Do(func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(payload)
		return err
	}))
}

// listenUDP waits in a namespace for what frames carry.
func listenUDP(t testing.TB, s nl.Space) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	must(t, s.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", net.JoinHostPort("::", "9"))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

func received(t testing.TB, c net.PacketConn, wait time.Duration) bool {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	_, _, err := c.ReadFrom(make([]byte, 100))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// counted waits until a drop counter of the node has grown beyond before.
func (n *testNode) counted(t testing.TB, name string, before uint64) bool {
	t.Helper()
	for end := time.Now().Add(probeTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if n.counter(t, name) > before {
			return true
		}
	}
	return false
}

func (n *testNode) counter(t testing.TB, name string) uint64 {
	t.Helper()
	all, err := n.filter.Counters(t.Context())
	must(t, err)
	c, ok := all[name]
	if !ok {
		t.Fatalf("no counter %s in %v", name, all)
	}
	return c.Packets
}

// TestDecapsulation: what comes out of the tunnel comes from a known node and
// has a source inside that node's prefixes (invariant N3); and neither does a pod
// speak in the tunnel, nor anybody outside as a pod (invariant N2).
func TestDecapsulation(t *testing.T) {
	for _, family := range []struct {
		name       string
		east, west string
		outsider   string
	}{
		{"over IPv4", "192.0.2.1/24", "192.0.2.2/24", "192.0.2.66/24"},
		{"over IPv6", "2001:db8::1/64", "2001:db8::2/64", "2001:db8::66/64"},
	} {
		t.Run(family.name, func(t *testing.T) {
			f := newFabric(t)
			m := &mesh{backend: model.EncapVXLAN, prefixes: map[string][]netip.Prefix{
				"east": prefixes("10.1.0.0/16", "fd00:1::/48"), "west": prefixes("10.2.0.0/16", "fd00:2::/48")}}
			a := m.join(t, f, "east", "e1", []string{family.east}, "10.1.3.0/24", "fd00:1:0:3::/64")
			b := m.join(t, f, "west", "w1", []string{family.west}, "10.2.5.0/24", "fd00:2:0:5::/64")
			evil := a.pod(t, "evil", "10.1.3.10", "fd00:1:0:3::10")
			victim := b.pod(t, "victim", "10.2.5.20", "fd00:2:0:5::20")
			m.program(t)
			outsider := newSpace(t)
			f.plug(t, outsider, family.outsider)
			target := netip.AddrPortFrom(netip.MustParsePrefix(family.west).Addr(), plan.DefaultVXLANPort)
			inbox := listenUDP(t, victim.space)

			good4 := frame{plan.DefaultVNI, a.row.Key, b.row.Key, evil.row.IPs.V4, victim.row.IPs.V4}
			good6 := frame{plan.DefaultVNI, a.row.Key, b.row.Key, evil.row.IPs.V6, victim.row.IPs.V6}
			foreign4, foreign6, vni := good4, good6, good4
			foreign4.src, foreign6.src = netip.MustParseAddr("10.2.5.77"), netip.MustParseAddr("fd00:1:0:4::1")
			vni.vni++
			beyond4, beyond6 := good4, good6
			beyond4.dst, beyond6.dst = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:99::7")
			host4, host6 := good4, good6 // the node's own addresses in the tunnel: for answers only
			host4.dst, host6.dst = netip.MustParseAddr("10.2.5.1"), netip.MustParseAddr("fd00:2:0:5::1")
			for _, c := range []struct {
				name    string
				from    nl.Space
				frame   frame
				at      *testNode // who counts the drop; nil: it must arrive
				counter string
			}{
				{"IPv4 of the node's own pod", a.space, good4, nil, ""},
				{"IPv6 of the node's own pod", a.space, good6, nil, ""},
				{"IPv4 from an unknown node", outsider, good4, b, "drop_decap_outer"},
				{"IPv6 from an unknown node", outsider, good6, b, "drop_decap_outer"},
				{"IPv4 source of another node", a.space, foreign4, b, "drop_decap_inner"},
				{"IPv6 source of another node", a.space, foreign6, b, "drop_decap_inner"},
				{"IPv4 to something else than a pod here", a.space, beyond4, b, "drop_decap_target"},
				{"IPv6 to something else than a pod here", a.space, beyond6, b, "drop_decap_target"},
				{"IPv4 to the node itself", a.space, host4, b, "drop_decap_target"},
				{"IPv6 to the node itself", a.space, host6, b, "drop_decap_target"},
				{"another VNI", a.space, vni, b, "drop_decap_vni"},
				{"IPv4 from a pod", evil.space, good4, a, "drop_pod_tunnel"},
				{"IPv6 from a pod", evil.space, good6, a, "drop_pod_tunnel"},
			} {
				t.Run(c.name, func(t *testing.T) {
					if c.at == nil {
						eventually(t, "the packet", func() bool {
							sendUDP(t, c.from, target, c.frame.bytes())
							return received(t, inbox, 100*time.Millisecond)
						})
						for received(t, inbox, 50*time.Millisecond) {
						}
						return
					}
					before := c.at.counter(t, c.counter)
					sendUDP(t, c.from, target, c.frame.bytes())
					if !c.at.counted(t, c.counter, before) {
						t.Errorf("%s did not count it", c.counter)
					}
					if received(t, inbox, 50*time.Millisecond) {
						t.Error("arrived")
					}
				})
			}
			t.Run("from a pod to an address of a node that nobody knows", func(t *testing.T) {
				unknown := netip.MustParsePrefix(family.outsider).Addr().Next()
				before := a.counter(t, "drop_pod_tunnel")
				sendUDP(t, evil.space, netip.AddrPortFrom(unknown, plan.DefaultVXLANPort), good4.bytes())
				if !a.counted(t, "drop_pod_tunnel", before) {
					t.Error("not counted")
				}
			})
			t.Run("from outside as a pod of the node", func(t *testing.T) {
				addr(t, outsider, "lo", "10.2.5.77/32")
				ip(t, outsider, "route", "replace", "10.2.5.20/32", "dev", "eth0")
				ip(t, outsider, "neigh", "replace", "10.2.5.20", "lladdr", macOf(t, b.space, "eth0"), "dev", "eth0")
				before := b.counter(t, "drop_underlay_source")
				udpFrom(outsider, "10.2.5.77", "10.2.5.20")(t)
				if !b.counted(t, "drop_underlay_source", before) || received(t, inbox, 50*time.Millisecond) {
					t.Error("not counted, or arrived")
				}
			})
			t.Run("from a pod to its own node", func(t *testing.T) {
				own := netip.AddrPortFrom(netip.MustParsePrefix(family.east).Addr(), plan.DefaultVXLANPort)
				before := a.counter(t, "drop_decap_pod")
				sendUDP(t, evil.space, own, good4.bytes())
				if !a.counted(t, "drop_decap_pod", before) {
					t.Error("not counted")
				}
			})
		})
	}
}

func macOf(t testing.TB, s nl.Space, dev string) (mac string) {
	t.Helper()
	with(t, s, func(h *netlink.Handle) { mac = device(t, h, dev).Attrs().HardwareAddr.String() })
	return mac
}

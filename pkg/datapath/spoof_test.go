package datapath_test

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
)

// TestPodIsChecked: a pod sends with its own address or not at all (invariant
// N2), and before it is programmed nothing (invariant N1).
func TestPodIsChecked(t *testing.T) {
	m, pods := twoNodes(t, model.EncapAuto, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	a, evil := m.nodes[0], pods[0]
	neighbour := a.pod(t, "neighbour", "10.1.3.11", "fd00:1:0:3::11")
	m.program(t)
	addr(t, evil.space, "eth0", "10.1.3.99/32", "fd00:1:0:3::99/128")

	for _, c := range []struct {
		name, counter string
		send          func(t *testing.T)
	}{
		{"IPv4 source of nobody", "drop_pod_source", udpFrom(evil.space, "10.1.3.99", "10.2.5.20")},
		{"IPv6 source of nobody", "drop_pod_source", udpFrom(evil.space, "fd00:1:0:3::99", "fd00:2:0:5::20")},
		{"IPv4 source of nobody to the node", "drop_pod_source", udpFrom(evil.space, "10.1.3.99", "192.0.2.1")},
		{"IPv4 source of nobody to a pod beside it", "drop_pod_source", udpFrom(evil.space, "10.1.3.99", "10.1.3.11")},
		{"router advertisement", "drop_pod_nd", icmp6(evil.space, 134)},
		{"neighbour advertisement", "drop_pod_nd", icmp6(evil.space, 136)},
		{"router solicitation", "drop_pod_nd", icmp6(evil.space, 133)},
		{"redirect", "drop_pod_nd", icmp6(evil.space, 137)},
		{"ARP", "drop_pod_arp", func(t *testing.T) {
			with(t, evil.space, func(h *netlink.Handle) {
				must(t, h.RouteReplace(&netlink.Route{LinkIndex: device(t, h, "eth0").Attrs().Index, Dst: netOf("198.51.100.0/24"), Scope: unix.RT_SCOPE_LINK}))
			})
			udpFrom(evil.space, "10.1.3.10", "198.51.100.7")(t)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := a.counter(t, c.counter)
			c.send(t)
			if !a.counted(t, c.counter, before) {
				t.Errorf("%s did not count it", c.counter)
			}
		})
	}
	t.Run("pods on one node reach each other", func(t *testing.T) {
		port := serve(t, neighbour.space)
		reaches(t, evil.space, neighbour.row.IPs.V4, port, evil.row.IPs.V4)
		reaches(t, evil.space, neighbour.row.IPs.V6, port, evil.row.IPs.V6)
	})
	t.Run("a pod that is not programmed sends nothing", func(t *testing.T) {
		early := newPod(t, a.space, "early", "10.1.3.12")
		before := a.counter(t, "drop_pod_source")
		udpFrom(early.space, "10.1.3.12", "192.0.2.1")(t)
		if !a.counted(t, "drop_pod_source", before) {
			t.Error("not counted")
		}
	})
}

func udpFrom(s nl.Space, src, dst string) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		must(t, s.Do(func() error {
			from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
			family, local, remote := unix.AF_INET, sockaddr(from, 0), sockaddr(to, 9)
			if from.Is6() {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, local); err != nil {
				return err
			}
			return unix.Sendto(fd, []byte("spoof"), 0, remote)
		}))
	}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// icmp6 sends a discovery message to all nodes on the link.
func icmp6(s nl.Space, typ byte) func(t *testing.T) {
	return func(t *testing.T) {
		t.Helper()
		var index int
		with(t, s, func(h *netlink.Handle) { index = device(t, h, "eth0").Attrs().Index })
		must(t, s.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
				return err
			}
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index); err != nil {
				return err
			}
			allNodes := netip.MustParseAddr("ff02::1")
			return unix.Sendto(fd, append([]byte{typ, 0, 0, 0}, make([]byte, 20)...), 0, &unix.SockaddrInet6{Addr: allNodes.As16(), ZoneId: uint32(index)})
		}))
	}
}

// TestMasquerade: only what leaves the mesh gets the node's address (invariant N4).
func TestMasquerade(t *testing.T) {
	east, west := []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"}
	for _, c := range []struct {
		backend   model.Encap
		cluster   string // of the remote node
		nodeSeeAs string // whom the remote node sees: the pod, or its node
	}{
		{model.EncapDirect, "east", "pod"},
		{model.EncapDirect, "west", "node"}, // what a peer calls its node may be anything on our subnet
		{model.EncapVXLAN, "west", "node"},
	} {
		t.Run(string(c.backend)+" "+c.cluster, func(t *testing.T) {
			f := newFabric(t)
			m := &mesh{backend: c.backend, prefixes: map[string][]netip.Prefix{
				"east": prefixes("10.1.0.0/16", "fd00:1::/48"), "west": prefixes("10.2.0.0/16", "fd00:2::/48")}}
			a := m.join(t, f, "east", "e1", east, "10.1.3.0/24", "fd00:1:0:3::/64")
			podCIDRs := []string{"10.2.5.0/24", "fd00:2:0:5::/64"}
			if c.cluster == "east" {
				podCIDRs = []string{"10.1.5.0/24", "fd00:1:0:5::/64"}
			}
			b := m.join(t, f, c.cluster, "b1", west, podCIDRs...)
			p := a.pod(t, "client", "10.1.3.10", "fd00:1:0:3::10")
			m.program(t)
			outside := newSpace(t)
			f.plug(t, outside, "192.0.2.99/24", "2001:db8::99/64")
			port := serve(t, outside)
			reaches(t, p.space, netip.MustParseAddr("192.0.2.99"), port, a.row.Internal.V4)
			reaches(t, p.space, netip.MustParseAddr("2001:db8::99"), port, a.row.Internal.V6)
			port = serve(t, b.space)
			seen := p.row.IPs
			if c.nodeSeeAs == "node" {
				seen = a.row.Internal
			}
			reaches(t, p.space, b.row.Internal.V4, port, seen.V4)
			reaches(t, p.space, b.row.Internal.V6, port, seen.V6)
		})
	}
}

// TestNothingLeaks: a mesh address that no node claims is refused at once, and
// does not leave by the default route (invariant N4).
func TestNothingLeaks(t *testing.T) {
	m, pods := twoNodes(t, model.EncapAuto, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	with(t, m.nodes[0].space, func(h *netlink.Handle) {
		must(t, h.RouteAdd(&netlink.Route{Dst: netOf("0.0.0.0/0"), Gw: ipOf("192.0.2.2")}))
		must(t, h.RouteAdd(&netlink.Route{Dst: netOf("::/0"), Gw: ipOf("2001:db8::2")}))
	})
	for _, dst := range []string{"10.2.9.9", "10.1.3.200", "10.1.77.1", "fd00:2:0:9::9", "fd00:1:0:3::200"} {
		for _, from := range []nl.Space{pods[0].space, m.nodes[0].space} {
			if _, err := ask(from, netip.MustParseAddr(dst), 80); !isUnreachable(err) {
				t.Errorf("connect to %s: %v, want an unreachable error", dst, err)
			}
		}
	}
}

// Package conntrack ends flows that the kernel still translates to where a
// Service does not lead any more. It owns no object: flows are the kernel's, and
// those that lead where they should are never touched.
package conntrack

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// CutStale ends UDP flows to fronts that lead to none of their backends, and to
// virtual addresses in vips that are no front any more. It returns how many.
func CutStale(space nl.Space, fronts map[service.FrontKey]service.Front, vips []netip.Prefix) (uint, error) {
	h, err := space.HandleOf(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	filter := newStale(fronts, vips)
	var cut uint
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		cut += n
		if err != nil {
			return cut, fmt.Errorf("cut stale flows: %w", err)
		}
	}
	return cut, nil
}

// stale picks flows.
type stale struct {
	backends map[netip.AddrPort]map[netip.AddrPort]bool // by front
	vips     []netip.Prefix
}

func newStale(fronts map[service.FrontKey]service.Front, vips []netip.Prefix) *stale {
	s := &stale{backends: map[netip.AddrPort]map[netip.AddrPort]bool{}, vips: vips}
	for k, f := range fronts {
		if k.Protocol != unix.IPPROTO_UDP {
			continue
		}
		at := netip.AddrPortFrom(k.Addr, k.Port)
		if s.backends[at] == nil {
			s.backends[at] = map[netip.AddrPort]bool{} // of clients inside and outside
		}
		for _, b := range f.Slots.All(k.Addr.Is6()) {
			s.backends[at][b] = true
		}
	}
	return s
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s *stale) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, backend := addrPort(f.Forward.DstIP, f.Forward.DstPort), addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
	if backends, front := s.backends[to]; front {
		// A flow that began when there was no backend is not translated.
		return !backends[backend] && (len(backends) > 0 || backend != to)
	}
	if backend == to {
		return false
	}
	for _, p := range s.vips {
		if p.Contains(to.Addr()) {
			return true
		}
	}
	return false
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

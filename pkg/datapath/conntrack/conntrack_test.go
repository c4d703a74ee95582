package conntrack

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/service"
)

// TestStale (invariant V5): which flows are cut, and that all others are left
// alone.
func TestStale(t *testing.T) {
	ap := netip.MustParseAddrPort
	slots, _ := service.Spread([]service.Backend{{AddrPort: ap("10.1.0.1:53"), Weight: 1}, {AddrPort: ap("10.1.0.2:53"), Weight: 1}})
	outside, _ := service.Spread([]service.Backend{{AddrPort: ap("10.1.0.9:53"), Weight: 1}})
	key := func(s string) service.FrontKey {
		return service.FrontKey{Addr: ap(s).Addr(), Port: ap(s).Port(), Protocol: unix.IPPROTO_UDP}
	}
	fromOutside := key("10.96.0.10:53")
	fromOutside.Outside = true
	filter := newStale(map[service.FrontKey]service.Front{
		{}: {}, key("10.96.0.10:53"): {Slots: slots}, fromOutside: {Slots: outside}, key("10.96.0.11:53"): {Verdict: service.Reject},
	}, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
	for _, tt := range []struct {
		name        string
		protocol    uint8
		to, backend string
		cut         bool
	}{
		{"to a backend", unix.IPPROTO_UDP, "10.96.0.10:53", "10.1.0.2:53", false},
		{"to a backend of clients outside", unix.IPPROTO_UDP, "10.96.0.10:53", "10.1.0.9:53", false},
		{"to one that is gone", unix.IPPROTO_UDP, "10.96.0.10:53", "10.1.0.3:53", true},
		{"to another port of a backend", unix.IPPROTO_UDP, "10.96.0.10:53", "10.1.0.2:54", true},
		{"not translated, though there are backends now", unix.IPPROTO_UDP, "10.96.0.10:53", "10.96.0.10:53", true},
		{"not translated, and there is none", unix.IPPROTO_UDP, "10.96.0.11:53", "10.96.0.11:53", false},
		{"translated, though there is none now", unix.IPPROTO_UDP, "10.96.0.11:53", "10.1.0.1:53", true},
		{"to a Service that is gone", unix.IPPROTO_UDP, "10.96.0.12:53", "10.1.0.1:53", true},
		{"TCP", unix.IPPROTO_TCP, "10.96.0.10:53", "10.1.0.3:53", false},
		{"somebody else's", unix.IPPROTO_UDP, "192.0.2.1:53", "10.1.0.3:53", false},
		{"pod to pod", unix.IPPROTO_UDP, "10.1.0.3:53", "10.1.0.3:53", false},
	} {
		f := &netlink.ConntrackFlow{}
		f.Forward.Protocol = tt.protocol
		f.Forward.DstIP, f.Forward.DstPort = ap(tt.to).Addr().AsSlice(), ap(tt.to).Port()
		f.Reverse.SrcIP, f.Reverse.SrcPort = ap(tt.backend).Addr().AsSlice(), ap(tt.backend).Port()
		if got := filter.MatchConntrackFlow(f); got != tt.cut {
			t.Errorf("%s: cut %v, want %v", tt.name, got, tt.cut)
		}
	}
}

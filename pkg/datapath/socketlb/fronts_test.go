package socketlb

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// BenchmarkFronts is what one change costs before the kernel is asked: the plan's
// copy, ours, and comparing it with what is held.
func BenchmarkFronts(b *testing.B) {
	for _, n := range []int{10_000, 50_000} {
		all := map[service.FrontKey]service.Front{{}: {}}
		for i := range n {
			slots, _ := service.Spread([]service.Backend{{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80), Weight: 1}})
			all[service.FrontKey{Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Protocol: tcp, Port: 80}] = service.Front{Slots: slots}
		}
		for name, f := range map[string]func(){
			"clone": func() { _ = maps.Clone(all) }, "fronts": func() { Fronts(all) }, "delta": func() { reconcile.Delta(all, all) }} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
	}
}

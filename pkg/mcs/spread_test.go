package mcs_test

import (
	"math"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// TestSlots: what Choose says is what service.Spread takes, and clusters get their
// shares of the slots (invariant V2).
func TestSlots(t *testing.T) {
	for policy, want := range map[string][3]float64{ // of me, east and west, which have 2, 3 and 7 backends
		"local, *":            {1, 0, 0},
		"*":                   {0, 0.3, 0.7},
		"east=80, west=20":    {0, 0.8, 0.2},
		"local=1, *=1":        {1. / 3, 1. / 3, 1. / 3},
		"west=3, local=1":     {0.25, 0, 0.75},
		"east=0, west, local": {0, 0, 1},
	} {
		t.Run(policy, func(t *testing.T) {
			p, err := mcs.ParsePolicy(policy)
			if err != nil {
				t.Fatal(err)
			}
			var list []mcs.Candidate
			for i, n := range []int{2, 3, 7} {
				for range n {
					list = append(list, mcs.Candidate{Cluster: []string{"me", "east", "west"}[i], Ready: true, Serving: true})
				}
			}
			var backends []service.Backend
			for i, u := range mcs.Choose(p, "me", func(string) mcs.Freshness { return mcs.Fresh }, list) {
				backends = append(backends, service.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: u.Weight})
			}
			slots, even := service.Spread(backends)
			var got [3]float64
			for _, a := range slots.All(false) {
				cluster := list[a.Addr().As4()[3]].Cluster
				got[map[string]int{"me": 0, "east": 1, "west": 2}[cluster]] += 1 / float64(slots.Len(false))
			}
			for i := range want {
				if math.Abs(got[i]-want[i]) > 0.05*want[i] || !even {
					t.Errorf("shares %.3f, want %.3f, even %v", got, want, even)
				}
			}
		})
	}
}

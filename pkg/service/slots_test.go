package service

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
)

func backends(n int, weight func(i int) uint32) []Backend {
	out := make([]Backend, n)
	for i := range out {
		out[i] = Backend{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080), weight(i)}
	}
	return out
}

// TestShares (invariant V2): every backend's share is within 5 % of its weight, from 1 to
// 5,000 backends.
func TestShares(t *testing.T) {
	one := func(int) uint32 { return 1 }
	for _, tt := range []struct {
		n, slots int
		weight   func(int) uint32
	}{
		{1, 1, one}, {2, 2, one}, {3, 3, one}, {10, 10, one}, {64, 64, one}, {65, 1024, one}, {100, 2048, one}, {1000, 16384, one}, {5000, 131072, one},
		{2, 5, func(i int) uint32 { return []uint32{80, 20}[i] }},
		{3, 3, func(i int) uint32 { return []uint32{1, 1, 1}[i] }},
		{4, 3, func(i int) uint32 { return []uint32{0, 7, 7, 7}[i] }}, // weight 0 gets nothing
		{2, 128, func(i int) uint32 { return []uint32{99, 1}[i] }},
	} {
		t.Run(fmt.Sprint(tt.n, "/", tt.slots), func(t *testing.T) {
			in := backends(tt.n, tt.weight)
			slots, even := Spread(in)
			if !even || slots.Len(false) != tt.slots && tt.slots != 128 {
				t.Errorf("%d slots, even %v; want %d", slots.Len(false), even, tt.slots)
			}
			total := 0.0
			for _, b := range in {
				total += float64(b.Weight)
			}
			got := map[netip.AddrPort]int{}
			for _, a := range slots.All(false) {
				got[a]++
			}
			for _, b := range in {
				ideal := float64(b.Weight) / total * float64(slots.Len(false))
				if off := math.Abs(float64(got[b.AddrPort]) - ideal); off > tolerance*ideal {
					t.Errorf("%v has %d slots, its weight is worth %.2f", b.AddrPort, got[b.AddrPort], ideal)
				}
			}
		})
	}
}

// TestClassesFit: what Spread makes is always one of the classes.
func TestClassesFit(t *testing.T) {
	classes := map[int]bool{0: true}
	for _, n := range Classes() {
		classes[n] = true
	}
	for n := range 300 {
		slots, _ := Spread(backends(n, func(i int) uint32 { return uint32(i%7 + 1) }))
		if !classes[slots.Len(false)] {
			t.Errorf("%d backends: no class of %d slots", n, slots.Len(false))
		}
	}
}

// TestFewMove: one backend more or less moves few slots of a large class.
func TestFewMove(t *testing.T) {
	all := backends(200, func(int) uint32 { return 1 })
	before, _ := Spread(all)
	after, _ := Spread(all[1:])
	if before.Len(false) != after.Len(false) {
		t.Fatalf("classes %d and %d", before.Len(false), after.Len(false))
	}
	moved := 0
	for i := range before.Len(false) {
		if before.At(i, false) != after.At(i, false) {
			moved++
		}
	}
	if limit := before.Len(false) / 200 * 8; moved > limit {
		t.Errorf("%d of %d slots moved, want at most %d", moved, before.Len(false), limit)
	}
}

func BenchmarkSpread5000(b *testing.B) {
	in := backends(5000, func(int) uint32 { return 1 })
	for b.Loop() {
		Spread(in)
	}
}

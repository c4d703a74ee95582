package mcs

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The size that issue 4 asks for.
const benchServices, benchEndpoints = 10_000, 10

func benchSlice(service, from int) (model.SliceKey, string) {
	s := wire.Slice{Service: fmt.Sprintf("web-%d", service), Ports: hello().Ports}
	for i := range benchEndpoints {
		n := service*benchEndpoints + i
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Ready: i != from, Serving: true, Zone: "zone-a"})
	}
	return model.SliceKey{Cluster: "east", Namespace: "shop", Name: s.Service + "-x7k2p"}, string(s.Encode())
}

// benchPlanner imports 10,000 Services of 10 endpoints each.
func benchPlanner() *Planner {
	p := NewPlanner(Base{Cluster: "west"}, now)
	p.SetPeers(map[string]Peer{"east": {}})
	p.SetNamespaces([]string{"shop"}, nil)
	e := hello()
	e.CreatedMilli = now
	claims, slices := map[model.ExportKey]string{}, map[model.SliceKey]string{}
	for i := range benchServices {
		claims[model.ExportKey{Cluster: "east", Namespace: "shop", Name: fmt.Sprintf("web-%d", i)}] = string(e.Encode())
		k, v := benchSlice(i, -1)
		slices[k] = v
	}
	p.SetClaims(claims, nil)
	p.SetSlices(slices, nil)
	return p
}

// BenchmarkLoad is the first plan of 10,000 Services.
func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if n := len(benchPlanner().Plan().Slices); n != benchServices {
			b.Fatal(n)
		}
	}
}

// BenchmarkChange is one change of one slice among them.
func BenchmarkChange(b *testing.B) {
	p := benchPlanner()
	p.Plan()
	for i := 0; b.Loop(); i++ {
		k, v := benchSlice(i%benchServices, i/benchServices%benchEndpoints)
		p.SetSlices(map[model.SliceKey]string{k: v}, nil)
		if n := len(p.Plan().Patch.Slices.Set); n != 1 {
			b.Fatal(n)
		}
	}
}

// BenchmarkChoose is one port of a Service with 100 backends in two clusters.
func BenchmarkChoose(b *testing.B) {
	p, _ := ParsePolicy("local, east=80, west=20")
	var list []Candidate
	for i := range 100 {
		list = append(list, Candidate{[]string{"me", "east", "west"}[i%3], i%3 != 0, true, false})
	}
	for b.Loop() {
		Choose(p, "me", func(string) Freshness { return Fresh }, list)
	}
}

// TestChangeIsLocal (invariant G2): what one change of a slice costs does not
// depend on how many Services there are. It counts rows, not time.
func TestChangeIsLocal(t *testing.T) {
	p := benchPlanner()
	p.Plan()
	k, v := benchSlice(7, 3)
	p.SetSlices(map[model.SliceKey]string{k: v}, nil)
	if len(p.dirty) != 0 || len(p.dirtySlices) != 1 {
		t.Errorf("%d Services and %d slices are planned anew", len(p.dirty), len(p.dirtySlices))
	}
	if c := p.Plan().Patch; len(c.Slices.Set) != 1 || len(c.Slices.Del)+len(c.Imports.Set)+len(c.Services.Set)+len(c.Wire.Set)+len(c.Exports.Set) != 0 {
		t.Errorf("%+v", c)
	}
}

package service

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// crowd are n Services with some backends each.
func crowd(n, backends int) rows {
	all := rows{map[model.ServicePortKey]model.ServicePort{}, map[model.SliceKey]string{}}
	for i := range n {
		all.ports[model.ServicePortKey{Namespace: "default", Name: fmt.Sprint("s", i)}] = model.ServicePort{Protocol: 6, Port: 80, CreatedUnix: int64(i),
			ClusterIPs: model.Addrs{V4: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}}
		all.slices[sliceKey(fmt.Sprint("s", i))] = crowdSlice(i, backends)
	}
	return all
}

func crowdSlice(i, backends int) string {
	s := wire.Slice{Service: fmt.Sprint("s", i), Ports: []wire.Port{{Protocol: 6, Port: 8080}}}
	for j := range backends {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, byte(1 + j), byte(i >> 8), byte(i)}), Ready: true, Serving: true, Node: "n1", Zone: "a"})
	}
	return string(s.Encode())
}

var sizes = []struct{ services, backends int }{{10_000, 10}, {50_000, 3}}

// BenchmarkCold plans all Services from nothing, and tells how much memory that
// keeps for each.
func BenchmarkCold(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.backends), func(b *testing.B) {
			all := crowd(size.services, size.backends)
			b.ReportAllocs()
			for b.Loop() {
				before := heap()
				p := NewPlanner()
				p.SetBase(testBase)
				p.SetPorts(all.ports, nil)
				p.SetSlices(all.slices, nil)
				patch := p.Update()
				b.ReportMetric(float64(heap()-before)/float64(size.services), "B/Service")
				runtime.KeepAlive(patch)
				runtime.KeepAlive(p)
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkEndpoint plans the change of one endpoint among many Services.
func BenchmarkEndpoint(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("%dx%d", size.services, size.backends), func(b *testing.B) {
			all := crowd(size.services, size.backends)
			p := NewPlanner()
			p.SetBase(testBase)
			p.SetPorts(all.ports, nil)
			p.SetSlices(all.slices, nil)
			p.Update()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s := 7 * i % size.services
				p.SetSlices(map[model.SliceKey]string{sliceKey(fmt.Sprint("s", s)): crowdSlice(s, size.backends-1+2*(i%2))}, nil)
				p.Update()
			}
		})
	}
}

// BenchmarkManyPorts plans a Service with 3,000 ports, which all backends have,
// after the change of one endpoint.
func BenchmarkManyPorts(b *testing.B) {
	ports, s := map[model.ServicePortKey]model.ServicePort{}, wire.Slice{Service: "web"}
	for i := range 3000 {
		name := fmt.Sprintf("port-%04d", i)
		ports[model.ServicePortKey{Namespace: "default", Name: "web", Port: name}] = webPort(func(p *model.ServicePort) { p.Port = uint16(i + 1) })
		s.Ports = append(s.Ports, wire.Port{Name: name, Protocol: 6, Port: uint16(i + 1)})
	}
	p := NewPlanner()
	p.SetBase(testBase)
	p.SetPorts(ports, nil)
	for i := 0; b.Loop(); i++ {
		s.Endpoints = []wire.SliceEndpoint{{Addr: addr("10.1.0.1"), Ready: true, Serving: true}, {Addr: addr("10.1.0.2"), Ready: i%2 == 0, Serving: true}}
		p.SetSlices(map[model.SliceKey]string{sliceKey("web"): string(s.Encode())}, nil)
		p.Update()
	}
}

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// services of the size that the issue names.
const services = 10_000

// fill holds many services, every other one headless with ten endpoints.
func (x *indexed) fill() {
	imports, sliced := map[model.ServiceKey]model.ServiceImport{}, map[model.ServiceKey]model.ImportSlice{}
	namespaces := map[string]model.Namespace{}
	for i := range services {
		k := model.ServiceKey{Namespace: fmt.Sprintf("team-%d", i%100), Name: fmt.Sprintf("svc-%d", i)}
		namespaces[k.Namespace] = model.Namespace{}
		imports[k] = model.ServiceImport{Headless: i%2 == 1, Ports: "http/tcp/80"}
		if i%2 == 0 {
			imports[k] = model.ServiceImport{IPs: model.Addrs{V4: netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)})}, Ports: "http/tcp/80"}
		}
		row := model.ImportSlice{Service: k.Name, Cluster: "east", Ports: "http/tcp/8080"}
		for j := range 10 {
			row.Endpoints += fmt.Sprintf("10.%d.%d.%d=pod-%d ", i>>8, i&0xff, j, j)
		}
		sliced[model.ServiceKey{Namespace: k.Namespace, Name: k.Name + "-east"}] = row
	}
	x.Imports.Replace(source, imports)
	x.Slices.Replace(source, sliced)
	x.Namespaces.Replace(source, namespaces)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkHold is the time to index 10,000 services, and the memory that
// tables and index then take.
func BenchmarkHold(b *testing.B) {
	for b.Loop() {
		before := heap()
		x := newIndexed(b)
		x.fill()
		ctx, cancel := context.WithCancel(b.Context())
		go func() { _ = x.Run(ctx) }()
		<-x.Synced()
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		cancel()
		runtime.KeepAlive(x)
	}
}

// BenchmarkChange is the time from a changed row to the answer, with 10,000
// services held.
func BenchmarkChange(b *testing.B) {
	x := newIndexed(b)
	x.fill()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { _ = x.Run(ctx) }()
	<-x.Synced()
	imports, sliced, namespaces := x.Imports.Follow(), x.Slices.Follow(), x.Namespaces.Follow()
	x.step(imports, sliced, namespaces)
	cancel()
	k := model.ServiceKey{Namespace: "team-1", Name: "svc-1-east"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		x.Slices.Update(source, map[model.ServiceKey]model.ImportSlice{k: {Service: "svc-1", Cluster: "east", Ports: "http/tcp/8080",
			Endpoints: "10.0.0.1=pod-0 10.0.0.2=pod-1 10.0.0." + fmt.Sprint(i%250)}}, nil)
		x.step(imports, sliced, namespaces)
	}
}

// BenchmarkQueries is queries over UDP on loopback, client's time included.
func BenchmarkQueries(b *testing.B) {
	s := serve(b, "127.0.0.1", nil)
	b.RunParallel(func(pb *testing.PB) {
		c, err := dns.Dial("udp", s.Addr())
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		raw, _ := question("web", dns.TypeA).Pack()
		in := make([]byte, 512)
		for pb.Next() {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Conn.Write(raw); err != nil {
				b.Error(err)
				return
			}
			if _, err := c.Conn.Read(in); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

package zone

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Answers during changes are of one state: addresses of all its endpoints, or
// of none (invariant D2; the race detector shows that no lock is missing).
func TestChangesDuringQueries(t *testing.T) {
	z := newZone(t)
	z.SetNamespaces([]string{"shop"}, nil)
	z.SetSynced()
	state := func(i int) Change {
		return Change{Key: key("shop/db"), Import: model.ServiceImport{Headless: true}, Gone: i%7 == 6, Slices: []model.ImportSlice{
			{Cluster: "east", Endpoints: fmt.Sprintf("10.0.%d.1 10.0.%d.2", i, i), Ports: "a/tcp/1"},
			{Cluster: "west", Endpoints: fmt.Sprintf("10.1.%d.1", i), Ports: "a/tcp/1"}}}
	}
	z.SetServices([]Change{state(0)})
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, kind := range []uint16{dns.TypeA, dns.TypeSRV} {
		wg.Go(func() {
			m := new(dns.Msg)
			m.SetQuestion("db.shop.svc.clusterset.local.", kind)
			for !stop.Load() {
				out := ask(t, z, m, dns.MaxMsgSize)
				seen := map[byte]int{}
				for _, rr := range append(out.Answer, out.Extra...) {
					if a, ok := rr.(*dns.A); ok {
						seen[a.A.To4()[2]]++
					}
				}
				for i, n := range seen {
					if len(seen) > 1 || n != 3 {
						t.Errorf("answer mixes states: %v of state %d, %v", n, i, seen)
						return
					}
				}
			}
		})
	}
	for i := range 250 {
		z.SetServices([]Change{state(i)})
		z.SetSerial(uint32(i))
		z.SetNamespaces([]string{fmt.Sprint("n", i)}, []string{fmt.Sprint("n", i-1)})
		z.SetServers([]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
	}
	stop.Store(true)
	wg.Wait()
}

// Names come and go, one by one and many at once.
func TestChanges(t *testing.T) {
	z := newZone(t)
	z.SetNamespaces([]string{"a", "b"}, nil)
	z.SetSynced()
	rcode := func(name string) int {
		m := new(dns.Msg)
		m.SetQuestion(name+".svc.clusterset.local.", dns.TypeA)
		return ask(t, z, m, 512).Rcode
	}
	var all, gone []Change
	for i := range 1000 {
		c := Change{Key: key(fmt.Sprintf("a/s%d", i)), Import: model.ServiceImport{IPs: addrs("10.0.0.1"), Ports: "/tcp/1"}}
		all, gone = append(all, c), append(gone, Change{Key: c.Key, Gone: true})
	}
	z.SetServices(all)
	for i := range all {
		if got := rcode(fmt.Sprintf("s%d.a", i)); got != dns.RcodeSuccess {
			t.Fatalf("s%d: %d", i, got)
		}
	}
	if got := rcode("s1.b"); got != dns.RcodeNameError {
		t.Error("a name shows in another namespace: ", got)
	}
	z.SetServices(gone[1:])
	if a, b := rcode("s0.a"), rcode("s1.a"); a != dns.RcodeSuccess || b != dns.RcodeNameError {
		t.Error(a, b)
	}
	z.SetNamespaces(nil, []string{"a"})
	if got := rcode("s0.a"); got != dns.RcodeNameError {
		t.Error("a service outlives its namespace: ", got)
	}
}

// Every address is as likely to come first, also of those that don't fit.
func TestOrderIsRandom(t *testing.T) {
	z := filled(t)
	var q Query
	m := new(dns.Msg)
	m.SetQuestion("big.shop.svc.clusterset.local.", dns.TypeA)
	b, _ := m.Pack()
	if err := q.Parse(b); err != nil {
		t.Fatal(err)
	}
	const rounds = 20000
	first := map[string]int{}
	for seed := range uint64(rounds) {
		out := new(dns.Msg)
		if err := out.Unpack(z.Answer(nil, &q, 512, seed)); err != nil {
			t.Fatal(err)
		}
		first[out.Answer[0].(*dns.A).A.String()]++
	}
	for a, n := range first {
		if len(first) != 100 || n < rounds/100/2 || n > rounds/100*2 {
			t.Fatalf("%s came first %d times of %d; %d addresses did", a, n, rounds, len(first))
		}
	}
}

func TestNew(t *testing.T) {
	good := Config{Name: "clusterset.local.", TTLSeconds: 3600, UDPSize: 4096}
	if z, err := New(good); err != nil || z.Name() != "clusterset.local." {
		t.Error(z, err)
	}
	for name, edit := range map[string]func(*Config){
		"empty label": func(c *Config) { c.Name = "a..b" }, "no name": func(c *Config) { c.Name = "" }, "root": func(c *Config) { c.Name = "." },
		"TTL": func(c *Config) { c.TTLSeconds = 3601 }, "small": func(c *Config) { c.UDPSize = 511 }, "large": func(c *Config) { c.UDPSize = 4097 },
		"long": func(c *Config) { c.Name = many(30) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			edit(&bad)
			if _, err := New(bad); err == nil {
				t.Errorf("%+v is taken", bad)
			}
		})
	}
}

func BenchmarkAnswer(b *testing.B) {
	z := filled(b)
	for _, c := range []struct {
		name string
		kind uint16
	}{{"web.shop", dns.TypeA}, {"db.shop", dns.TypeA}, {"db.shop", dns.TypeSRV}, {"none.shop", dns.TypeA}, {"db-0.east.db.shop", dns.TypeA}} {
		b.Run(c.name+"/"+dns.TypeToString[c.kind], func(b *testing.B) {
			m := new(dns.Msg)
			m.SetQuestion(c.name+".svc.clusterset.local.", c.kind)
			raw, _ := m.SetEdns0(1232, false).Pack()
			var q Query
			buf := make([]byte, 0, 1500)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := q.Parse(raw); err != nil {
					b.Fatal(err)
				}
				buf = z.Answer(buf, &q, 1232, uint64(i))
			}
		})
	}
}

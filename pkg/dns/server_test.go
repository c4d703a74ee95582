package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

// served is a server on loopback that runs until the test ends.
type served struct {
	*Server
	registry *prometheus.Registry
	port     string
}

func serve(t testing.TB, host string, edit func(*Options)) *served {
	t.Helper()
	z, err := zone.New(zone.Config{Name: "clusterset.local", TTLSeconds: 5, UDPSize: 1232})
	if err != nil {
		t.Fatal(err)
	}
	var many strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&many, "10.1.%d.%d ", i/250, i%250)
	}
	z.SetNamespaces([]string{"shop"}, nil)
	z.SetServices([]zone.Change{
		{Key: model.ServiceKey{Namespace: "shop", Name: "web"}, Import: model.ServiceImport{IPs: model.Addrs{V4: netip.MustParseAddr("10.99.0.1")}, Ports: "http/tcp/80"}},
		{Key: model.ServiceKey{Namespace: "shop", Name: "big"}, Import: model.ServiceImport{Headless: true},
			Slices: []model.ImportSlice{{Cluster: "east", Endpoints: many.String(), Ports: "http/tcp/80"}}}})
	z.SetSynced()
	s := &served{registry: prometheus.NewRegistry()}
	opt := Options{Log: slog.New(slog.DiscardHandler), Zone: z, Meter: NewMeter(s.registry, ":53", z.Name()), UDPSize: 1232}
	if edit != nil {
		edit(&opt)
	}
	for range 10 { // the UDP port of that number may be somebody's
		if s.Server, err = New(t.Context(), net.JoinHostPort(host, "0"), opt); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(s.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func question(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name+".shop.svc.clusterset.local.", kind)
	return m
}

func exchangeWith(t testing.TB, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	out, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %v: %v", network, m.Question, err)
	}
	return out
}

// Both transports answer, and from the address that was asked: connected
// sockets, as resolvers use, take no other.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	s := serve(t, "", nil)
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		for _, network := range []string{"udp", "tcp"} {
			out := exchangeWith(t, network, net.JoinHostPort(host, s.port), question("web", dns.TypeA))
			if len(out.Answer) != 1 || !out.Authoritative || out.RecursionAvailable {
				t.Errorf("%s %s: %v", network, host, out)
			}
		}
	}
}

// What does not fit is truncated, at the client's size or ours, and all there
// over TCP.
func TestSizes(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	for name, c := range map[string]struct {
		edns uint16
		most int
	}{"no EDNS": {0, 512}, "less than the least": {100, 512}, "as the client says": {900, 900}, "not more than ours": {4096, 1232}} {
		t.Run(name, func(t *testing.T) {
			m := question("big", dns.TypeA)
			if c.edns > 0 {
				m.SetEdns0(c.edns, false)
			}
			out := exchangeWith(t, "udp", s.Addr(), m)
			out.Compress = true
			if n := out.Len(); !out.Truncated || n > c.most || n < c.most-30 {
				t.Errorf("%d octets, truncated %v, want at most %d", n, out.Truncated, c.most)
			}
		})
	}
	if out := exchangeWith(t, "tcp", s.Addr(), question("big", dns.TypeA)); out.Truncated || len(out.Answer) != 3000 {
		t.Errorf("TCP: truncated %v, %d records", out.Truncated, len(out.Answer))
	}
	if out := exchangeWith(t, "tcp", s.Addr(), question("big", dns.TypeSRV)); !out.Truncated || len(out.Answer) < 800 {
		t.Errorf("TCP, more than 64 KiB: truncated %v, %d records", out.Truncated, len(out.Answer))
	}
}

// Headers that are no questions get the codes that CoreDNS gives, or nothing.
func TestHeaders(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	for name, c := range map[string]struct {
		edit func(*dns.Msg)
		want int
	}{
		"update":        {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"notify":        {func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		"no question":   {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"two questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question...) }, dns.RcodeFormatError},
		"other zone":    {func(m *dns.Msg) { m.Question[0].Name = "example.com." }, dns.RcodeRefused},
		"transfer":      {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(name+" "+network, func(t *testing.T) {
				m := question("web", dns.TypeA)
				c.edit(m)
				if out := exchangeWith(t, network, s.Addr(), m); out.Rcode != c.want || out.Id != m.Id || len(out.Answer) > 0 {
					t.Errorf("got %v", out)
				}
			})
		}
	}
}

// Noise costs others nothing (invariant D3).
func TestNoise(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	c, err := net.Dial("udp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	response := question("web", dns.TypeA)
	response.Response = true
	b, _ := response.Pack()
	silent := [][]byte{{}, {1}, b[:11], b}
	for _, x := range silent {
		if _, err := c.Write(x); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := c.Read(make([]byte, 512)); err == nil {
		t.Errorf("an answer of %d octets to what is no question", n)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		x := make([]byte, rnd.IntN(1400))
		for j := range x {
			x[j] = byte(rnd.Uint32())
		}
		if i%2 == 0 && len(x) > len(b) { // a header that is believed
			copy(x, b[:12])
			x[2] &^= 0x80
		}
		_, _ = c.Write(x)
	}
	exchangeWith(t, "udp", s.Addr(), question("web", dns.TypeA))
}

// Questions that come in one piece are answered one by one, in order.
func TestPipeline(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	c := dial(t, s.Addr())
	var all []byte
	for i := range 100 {
		m := question([]string{"web", "big"}[i%2], dns.TypeA)
		m.Id = uint16(i)
		b, _ := m.Pack()
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(b))), b...)
	}
	go func() {
		for len(all) > 0 { // in pieces that are no messages
			n := min(len(all), 37)
			_, _ = c.Write(all[:n])
			all = all[n:]
		}
	}()
	for i := range 100 {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			t.Fatal(i, err)
		}
		b := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(i, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil || m.Id != uint16(i) {
			t.Fatal(i, m.Id, err)
		}
	}
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// However many connect, some are held, and who asks gets an answer (invariant D3).
func TestManyConnections(t *testing.T) {
	s := serve(t, "127.0.0.1", func(o *Options) { o.MaxConns = 20 })
	for range 300 {
		dial(t, s.Addr())
	}
	for range 10 {
		exchangeWith(t, "tcp", s.Addr(), question("web", dns.TypeA))
	}
	if n := s.tcp.len(); n > 20 {
		t.Errorf("%d connections are held", n)
	}
}

// Who does not read, does not go on, or promises too much is let go.
func TestSlowClients(t *testing.T) {
	s := serve(t, "127.0.0.1", func(o *Options) {
		o.ReadTimeout, o.WriteTimeout, o.IdleTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	})
	b, _ := question("big", dns.TypeA).Pack()
	whole := append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	for name, send := range map[string]func(net.Conn){
		"says nothing":          func(net.Conn) {},
		"stops in a message":    func(c net.Conn) { _, _ = c.Write(whole[:20]) },
		"promises 64 KiB":       func(c net.Conn) { _, _ = c.Write([]byte{0xff, 0xff}) },
		"stops after a message": func(c net.Conn) { _, _ = c.Write(whole) },
		"does not read": func(c net.Conn) {
			_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
			for range 5000 {
				if _, err := c.Write(whole); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			send(dial(t, s.Addr()))
			testutil.Eventually(t, 10*time.Second, "the connection is let go", func() bool { return s.tcp.len() == 0 })
		})
	}
}

// A server that ends lets nobody hang.
func TestEnd(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	ctx, cancel := context.WithCancel(t.Context())
	other, err := New(ctx, "127.0.0.1:"+s.port, s.opt) // beside the first, as in an upgrade on one node
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- other.Run(ctx) }()
	time.AfterFunc(50*time.Millisecond, cancel)
	select {
	case err := <-done:
		if ctx.Err() == nil || err != ctx.Err() {
			t.Error(err)
		}
	case <-time.After(grace + 5*time.Second):
		t.Fatal("it does not end")
	}
	for range 20 {
		exchangeWith(t, "udp", s.Addr(), question("web", dns.TypeA))
	}
}

// A bug costs the query that meets it its answer, and no other.
func TestPanic(t *testing.T) {
	s := serve(t, "127.0.0.1", func(o *Options) { o.Zone = nil })
	for _, network := range []string{"udp", "tcp"} {
		for range 2 {
			if out := exchangeWith(t, network, s.Addr(), question("web", dns.TypeA)); out.Rcode != dns.RcodeServerFailure {
				t.Error(network, out)
			}
		}
	}
}

func TestMetrics(t *testing.T) {
	s := serve(t, "127.0.0.1", nil)
	exchangeWith(t, "udp", s.Addr(), question("web", dns.TypeA))
	exchangeWith(t, "tcp", s.Addr(), question("none", dns.TypeLOC).SetEdns0(1232, true))
	exchangeWith(t, "udp", s.Addr(), new(dns.Msg).SetQuestion("example.com.", dns.TypeAAAA))
	want := []string{
		`coredns_dns_do_requests_total server="dns://:53" view="" zone="clusterset.local." 1`,
		`coredns_dns_requests_total family="1" proto="tcp" server="dns://:53" type="other" view="" zone="clusterset.local." 1`,
		`coredns_dns_requests_total family="1" proto="udp" server="dns://:53" type="A" view="" zone="clusterset.local." 1`,
		`coredns_dns_requests_total family="1" proto="udp" server="dns://:53" type="AAAA" view="" zone="dropped" 1`,
		`coredns_dns_responses_total plugin="" rcode="REFUSED" server="dns://:53" view="" zone="dropped" 1`,
		`coredns_dns_responses_total plugin="kubernetes" rcode="NOERROR" server="dns://:53" view="" zone="clusterset.local." 1`,
		`coredns_dns_responses_total plugin="kubernetes" rcode="NXDOMAIN" server="dns://:53" view="" zone="clusterset.local." 1`,
	}
	var got string
	testutil.Eventually(t, 5*time.Second, "all is counted", func() bool {
		got = counters(t, s.registry)
		for _, line := range want {
			if !strings.Contains(got, line+"\n") {
				return false
			}
		}
		return true
	})
}

// counters writes the counters of a registry, one a line.
func counters(t *testing.T, r *prometheus.Registry) string {
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetCounter() == nil {
				continue
			}
			b.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				fmt.Fprintf(&b, " %s=%q", l.GetName(), l.GetValue())
			}
			fmt.Fprintf(&b, " %v\n", m.GetCounter().GetValue())
		}
	}
	return b.String()
}

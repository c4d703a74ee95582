package zone

import (
	"errors"
	"testing"

	"github.com/miekg/dns"
)

// FuzzAnswer: whatever the packet, Parse sees in it what an independent decoder
// sees, and the answer can be read and fits (invariant D3).
func FuzzAnswer(f *testing.F) {
	z := filled(f)
	for _, name := range []string{"web.shop.svc.clusterset.local.", "_sql._tcp.db.shop.svc.ClusterSet.Local.", "db-0.east.db.shop.svc.clusterset.local.",
		"big.shop.svc.clusterset.local.", "clusterset.local.", "a.b.c.d.e.f.g.h.i.svc.clusterset.local.", "ns.dns.clusterset.local.", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypeIXFR} {
			m := new(dns.Msg)
			m.SetQuestion(name, kind)
			plain, _ := m.Pack()
			f.Add(plain, uint16(512))
			edns, _ := m.SetEdns0(4096, true).Pack()
			f.Add(edns, uint16(1232))
		}
	}
	f.Add([]byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, uint16(512))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		limit := max(512, int(size))
		var q Query
		m := new(dns.Msg)
		reference := m.Unpack(b)
		switch err := q.Parse(b); {
		case errors.Is(err, ErrIgnore):
			return
		case err != nil:
			if m.Unpack(Refuse(nil, &q, dns.RcodeFormatError)) != nil {
				t.Fatal("refusal can't be read")
			}
			return
		case reference == nil:
			var other Query
			if err := other.FromMsg(m); err != nil {
				t.Fatalf("Parse takes what FromMsg refuses: %v\n%v", err, m)
			}
			q.held, other.held = [8][]byte{}, [8][]byte{}
			if other.Bits = q.Bits; other.n != q.n || string(other.Name()) != string(q.Name()) || other.Type != q.Type || other.Class != q.Class ||
				other.EDNS != q.EDNS || other.Version != q.Version || other.UDPSize != q.UDPSize || other.DNSSECOK != q.DNSSECOK {
				t.Fatalf("Parse read %+v, FromMsg %+v", q, other)
			}
		}
		got := z.Answer(nil, &q, limit, 1)
		if len(got) > limit {
			t.Fatalf("%d octets, limit %d", len(got), limit)
		}
		out := new(dns.Msg)
		if err := out.Unpack(got); err != nil {
			t.Fatalf("answer can't be read: %v\n%x\n%x", err, b, got)
		}
		if out.Id != q.ID || !out.Response || len(out.Answer) > 0 && out.Rcode != dns.RcodeSuccess {
			t.Fatalf("answer %v", out)
		}
	})
}

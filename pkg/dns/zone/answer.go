package zone

import (
	"bytes"

	"github.com/miekg/dns"
)

// The schema's version, as CoreDNS says it of this zone too.
const (
	schemaVersion = "1.1.0"
	schemaTTL     = 28800
)

// Answer writes the answer to q into b, whose contents it overwrites: at most
// size octets, at least 512. Numbers that follow from seed decide the order of
// addresses.
func (z *Zone) Answer(b []byte, q *Query, size int, seed uint64) []byte {
	p := packet{b: b[:0], q: q, limit: size, udpSize: z.udpSize, ttl: z.ttl, seed: seed}
	p.begin()
	switch {
	case q.EDNS && q.Version != 0:
		return p.finish(dns.RcodeBadVers)
	case q.Class != dns.ClassINET, q.Type == dns.TypeAXFR, q.Type == dns.TypeIXFR:
		return p.finish(dns.RcodeRefused)
	}
	before := q.n - len(z.name)
	if before < 0 || !bytes.Equal(q.lower[before:q.n], z.name) {
		return p.finish(dns.RcodeRefused)
	}
	labels, ok := q.labelsBefore(before)
	if !ok {
		return p.finish(dns.RcodeRefused)
	}
	p.bits |= bitAuthoritative
	p.zoneAt, p.serviceAt = headerLen+before, headerLen
	return z.answer(&p, labels)
}

// Refuse writes the answer to what can't be taken for a question.
func Refuse(b []byte, q *Query, rcode int) []byte {
	p := packet{b: b[:0], q: &Query{ID: q.ID, Bits: q.Bits}, limit: 512}
	p.begin()
	return p.finish(rcode)
}

// labelsBefore are the last labels that end at offset end of the name; false if
// none does. There may be more labels than names that exist have.
func (q *Query) labelsBefore(end int) (out [][]byte, ok bool) {
	n, i := 0, 0
	for i < end {
		if n == len(q.held) {
			copy(q.held[:], q.held[1:])
			n--
		}
		next := i + 1 + int(q.lower[i])
		q.held[n] = q.lower[i:next]
		n++
		i = next
	}
	return q.held[:n], i == end
}

// answer is about a name in the zone, of which labels stand before the zone's.
func (z *Zone) answer(p *packet, labels [][]byte) []byte {
	switch n := len(labels); {
	case n == 0:
		return z.apex(p)
	case is(labels[n-1], "svc"):
		return z.inServices(p, labels[:n-1])
	case is(labels[n-1], "dns") && n == 1, is(labels[n-1], "pod") && n == 1:
		return z.nothing(p, dns.RcodeSuccess)
	case is(labels[n-1], "dns") && n == 2 && is(labels[0], "ns"):
		return z.records(p, z.servers.Load(), filter{})
	case is(labels[n-1], "dns-version") && n == 1:
		if p.q.Type != dns.TypeTXT {
			return z.nothing(p, dns.RcodeSuccess)
		}
		p.text(schemaTTL, schemaVersion)
		return p.finish(dns.RcodeSuccess)
	}
	return z.nothing(p, dns.RcodeNameError)
}

func (z *Zone) apex(p *packet) []byte {
	switch p.q.Type {
	case dns.TypeSOA:
		p.soa(&p.answers, z.serial.Load())
	case dns.TypeNS:
		p.nameServer(z.servers.Load())
	default:
		return z.nothing(p, dns.RcodeSuccess)
	}
	return p.finish(dns.RcodeSuccess)
}

// inServices is about <…>.<service>.<namespace>.svc.<zone>.
func (z *Zone) inServices(p *packet, labels [][]byte) []byte {
	n := len(labels)
	if n == 0 {
		return z.nothing(p, dns.RcodeSuccess)
	}
	if !z.synced.Load() {
		return p.finish(dns.RcodeServerFailure)
	}
	if _, ok := z.namespaces.get(labels[n-1]); !ok {
		return z.nothing(p, dns.RcodeNameError)
	}
	if n == 1 {
		return z.nothing(p, dns.RcodeSuccess)
	}
	key := p.q.lower[:p.zoneAt-headerLen-len("\x03svc")]
	p.serviceAt = headerLen + len(key) - len(labels[n-1]) - len(labels[n-2])
	s, ok := z.services.get(key[p.serviceAt-headerLen:])
	if !ok {
		return z.nothing(p, dns.RcodeNameError)
	}
	switch left := labels[:n-2]; {
	case len(left) == 0:
		return z.records(p, &s.bare, filter{})
	case len(left) == 2 && (left[0][1] == '_' || left[1][1] == '_'):
		return z.records(p, &s.bare, filter{name: bare(left[0]), protocol: bare(left[1])})
	case len(left) == 2 || len(left) == 3: // a cluster's name may have a dot (KEP-2149)
		if at := s.hosts.at(p.q.lower[:p.serviceAt-headerLen]); len(at.endpoints) > 0 {
			return z.records(p, &at, filter{})
		}
	}
	return z.nothing(p, dns.RcodeNameError) // <cluster>.<service>… among them, which is reserved
}

// bare is what a label says without its underscore.
func bare(label []byte) []byte { return bytes.TrimPrefix(label[1:], []byte("_")) }

// is tells whether a label says text.
func is(label []byte, text string) bool { return string(label[1:]) == text }

// records are those of the asked type of a set of endpoints.
func (z *Zone) records(p *packet, s *set, f filter) []byte {
	if !s.exists(f) {
		return z.nothing(p, dns.RcodeNameError)
	}
	switch p.q.Type {
	case dns.TypeA, dns.TypeAAAA:
		v4, v6 := s.v4, s.v6
		if !f.all() && len(s.ports) > 1 {
			v4, v6 = s.addresses(f)
		}
		if p.q.Type == dns.TypeA {
			p.addresses(v4, 4)
		} else {
			p.addresses(v6, 16)
		}
	case dns.TypeSRV:
		p.services(s, f)
	}
	if p.answers == 0 && !p.truncated() {
		return z.nothing(p, dns.RcodeSuccess)
	}
	return p.finish(dns.RcodeSuccess)
}

// nothing says that there is no such name, or nothing of that type, and for how
// long to believe it (RFC 2308).
func (z *Zone) nothing(p *packet, rcode int) []byte {
	p.soa(&p.authority, z.serial.Load())
	return p.finish(rcode)
}

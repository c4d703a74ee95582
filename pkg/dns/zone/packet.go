package zone

import (
	"encoding/binary"
	"math"

	"github.com/miekg/dns"
)

// optLen is the length of an OPT record without options.
const optLen = 11

// questionName is a pointer to the question's name.
const questionName = 0xc000 | headerLen

// packet is an answer that is being written. Its records refer back to the
// question's name, so that they have the case in which it was asked.
type packet struct {
	b       []byte
	q       *Query
	limit   int // octets, without the OPT record
	udpSize uint16
	bits    uint16
	ttl     uint32
	seed    uint64

	answers, authority, additional uint16

	zoneAt    int // offset of the zone's name in the question
	serviceAt int // of the service's
}

// begin writes the question.
func (p *packet) begin() {
	p.bits = bitResponse | p.q.Bits&(maskOpcode|bitRecursion|bitChecking)
	if p.q.EDNS {
		p.limit -= optLen
	}
	var header [headerLen]byte
	p.b = append(p.b, header[:]...) // finish fills it in
	if p.q.n > 0 {
		p.b = append(p.b, p.q.Name()...)
		p.put16(p.q.Type, p.q.Class)
	}
}

// finish adds the OPT record, and returns the packet.
func (p *packet) finish(rcode int) []byte {
	if p.q.EDNS {
		p.b = append(p.b, 0)
		p.put16(dns.TypeOPT, p.udpSize, uint16(rcode)>>4<<8)
		flags := uint16(0)
		if p.q.DNSSECOK {
			flags = 1 << 15
		}
		p.put16(flags, 0)
		p.additional++
	}
	questions := uint16(0)
	if p.q.n > 0 {
		questions = 1
	}
	for i, v := range [...]uint16{p.q.ID, p.bits | uint16(rcode)&0xf, questions, p.answers, p.authority, p.additional} {
		binary.BigEndian.PutUint16(p.b[2*i:], v)
	}
	return p.b
}

func (p *packet) truncated() bool { return p.bits&bitTruncated != 0 }

func (p *packet) put16(list ...uint16) {
	for _, v := range list {
		p.b = binary.BigEndian.AppendUint16(p.b, v)
	}
}

// record begins a record whose owner is a pointer, and returns where its data
// begins.
func (p *packet) record(owner, kind uint16, ttl uint32) int {
	p.put16(owner, kind, dns.ClassINET, uint16(ttl>>16), uint16(ttl), 0)
	return len(p.b)
}

// end ends the record that began at start, if it fits; if not, it is taken back.
func (p *packet) end(start, data int, count *uint16) bool {
	if len(p.b) > p.limit || *count == math.MaxUint16 {
		p.b = p.b[:start]
		return false
	}
	binary.BigEndian.PutUint16(p.b[data-2:], uint16(len(p.b)-data))
	*count++
	return true
}

// addressKind is the type of addresses of size octets.
func addressKind(size int) uint16 {
	if size == 4 {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// addresses answers with all of a list, in a random order; if they don't fit,
// each is as likely to be there.
func (p *packet) addresses(list string, size int) {
	n, from := len(list)/size, len(p.b)
	if n == 0 {
		return
	}
	first := int(p.random(uint64(n)))
	for i := range n {
		at := (first + i) % n * size
		start := len(p.b)
		data := p.record(questionName, addressKind(size), p.ttl)
		p.b = append(p.b, list[at:at+size]...)
		if !p.end(start, data, &p.answers) {
			p.bits |= bitTruncated
			break
		}
	}
	p.shuffle(p.b[from:], headerLen+size) // a record's fixed part is as long as a header
}

// shuffle changes the order of records of equal length (Fisher and Yates).
func (p *packet) shuffle(records []byte, size int) {
	var swap [headerLen + 16]byte
	for i := len(records)/size - 1; i > 0; i-- {
		j := int(p.random(uint64(i + 1)))
		a, b := records[i*size:(i+1)*size], records[j*size:(j+1)*size]
		copy(swap[:], a)
		copy(a, b)
		copy(b, swap[:size])
	}
}

// random is the next number below n (SplitMix64).
func (p *packet) random(n uint64) uint64 {
	p.seed += 0x9e3779b97f4a7c15
	x := p.seed
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return (x ^ x>>31) % n
}

// text answers with a TXT record.
func (p *packet) text(ttl uint32, s string) {
	start := len(p.b)
	data := p.record(questionName, dns.TypeTXT, ttl)
	p.b = append(append(p.b, byte(len(s))), s...)
	p.end(start, data, &p.answers)
}

// soa adds the zone's SOA record to a section. Resolvers believe what they are
// not told for as long as its last number says (RFC 2308).
func (p *packet) soa(count *uint16, serial uint32) {
	const refresh, retry, expire = 7200, 1800, 86400
	zone := uint16(0xc000 | p.zoneAt)
	start := len(p.b)
	data := p.record(zone, dns.TypeSOA, min(p.ttl, 300))
	p.b = append(p.b, "\x02ns\x03dns"...)
	p.put16(zone)
	p.b = append(p.b, "\x0ahostmaster"...)
	p.put16(zone)
	for _, v := range [...]uint32{serial, refresh, retry, expire, p.ttl} {
		p.b = binary.BigEndian.AppendUint32(p.b, v)
	}
	p.end(start, data, count)
}

// nameServer answers with ns.dns.<zone>, and its addresses.
func (p *packet) nameServer(servers *set) {
	start := len(p.b)
	data := p.record(uint16(0xc000|p.zoneAt), dns.TypeNS, p.ttl)
	p.b = append(p.b, "\x02ns\x03dns"...)
	p.put16(uint16(0xc000 | p.zoneAt))
	if p.end(start, data, &p.answers) {
		for _, e := range servers.endpoints {
			p.extra(uint16(0xc000|data), e)
		}
	}
}

// extra adds an endpoint's address; false if it does not fit. Additional
// records may be missing without the answer being truncated (RFC 2181, section 9).
func (p *packet) extra(owner uint16, e endpoint) bool {
	start, raw := len(p.b), e.addr.As16()
	octets := raw[:]
	if e.addr.Is4() {
		octets = raw[12:]
	}
	data := p.record(owner, addressKind(len(octets)), p.ttl)
	p.b = append(p.b, octets...)
	return p.end(start, data, &p.additional)
}

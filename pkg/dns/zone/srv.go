package zone

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// srvFixed is what stands before the target in the data of an SRV record
// (RFC 2782): priority, weight and port.
const srvFixed = 6

// services answers with one SRV record for each target and port, and with the
// targets' addresses.
func (p *packet) services(s *set, f filter) {
	first, weight := len(p.b), s.weight(f)
	for i, e := range s.endpoints {
		if e.label == "" && !s.virtual {
			continue
		}
		for j, port := range s.ports[e.ports] {
			if port.number == 0 || !f.takes(port) || s.said(i, j, f) {
				continue
			}
			if !p.service(e.label, weight, port.number) {
				p.bits |= bitTruncated
				return
			}
		}
	}
	p.targets(s, f, first)
}

// weight is the same for all: as CoreDNS has it, 100 shared between all
// endpoints and ports, before those are dropped that look alike.
func (s *set) weight(f filter) uint16 {
	n := s.entries // not counted anew for each query about a service of thousands
	if !f.all() {
		n = s.count(f)
	}
	return uint16(max(1, 100/max(1, n)))
}

// said tells whether the target of endpoint i with the number of its port j has
// come up before: with another protocol, or another address.
func (s *set) said(i, j int, f filter) bool {
	e := s.endpoints[i]
	number := s.ports[e.ports][j].number
	in := func(list []port) bool {
		for _, p := range list {
			if p.number == number && f.takes(p) {
				return true
			}
		}
		return false
	}
	if in(s.ports[e.ports][:j]) {
		return true
	}
	for i--; i >= 0 && s.endpoints[i].label == e.label; i-- {
		if in(s.ports[s.endpoints[i].ports]) {
			return true
		}
	}
	return false
}

// service writes one SRV record; false if it does not fit. RFC 2782 forbids to
// compress the target. A name that would be too long can't be told.
func (p *packet) service(label string, weight, number uint16) bool {
	name := p.q.name[p.serviceAt-headerLen : p.q.n]
	if len(label)+len(name) > maxName {
		return true
	}
	start := len(p.b)
	data := p.record(questionName, dns.TypeSRV, p.ttl)
	p.put16(0, weight, number)
	p.b = append(append(p.b, label...), name...)
	return p.end(start, data, &p.answers)
}

// targets adds the addresses of the records' targets; records begin at offset
// at, and stand in the endpoints' order. An owner's name is a pointer to the
// target, which has to lie in the first 16,383 octets.
func (p *packet) targets(s *set, f filter, at int) {
	end, size := len(p.b), p.q.n-(p.serviceAt-headerLen)
	for i, e := range s.endpoints {
		if !f.any(s.ports[e.ports]) || s.told(i, f) {
			continue
		}
		for at < end && string(p.targetLabel(at, size)) < e.label {
			at += headerLen + p.dataLen(at)
		}
		if at == end {
			return
		}
		if string(p.targetLabel(at, size)) != e.label {
			continue // it has no record
		}
		if target := at + headerLen + srvFixed; target >= 1<<14 || !p.extra(uint16(0xc000|target), e) {
			return
		}
	}
}

// told tells whether the address of endpoint i has come up before, with other ports.
func (s *set) told(i int, f filter) bool {
	e := s.endpoints[i]
	for i--; i >= 0 && s.endpoints[i].label == e.label && s.endpoints[i].addr == e.addr; i-- {
		if f.any(s.ports[s.endpoints[i].ports]) {
			return true
		}
	}
	return false
}

// dataLen is the length of the data of the record at offset at.
func (p *packet) dataLen(at int) int {
	return int(binary.BigEndian.Uint16(p.b[at+headerLen-2:]))
}

// targetLabel is what stands in the target of the record at offset at before
// the service's name, which has size octets.
func (p *packet) targetLabel(at, size int) []byte {
	return p.b[at+headerLen+srvFixed : at+headerLen+p.dataLen(at)-size]
}

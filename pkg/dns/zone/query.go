package zone

import (
	"encoding/binary"
	"errors"

	"github.com/miekg/dns"
)

const headerLen = 12

// Header bits (RFC 1035, section 4.1.1; RFC 4035, section 3.1.6).
const (
	bitResponse      = 1 << 15
	bitAuthoritative = 1 << 10
	bitTruncated     = 1 << 9
	bitRecursion     = 1 << 8 // desired
	bitChecking      = 1 << 4 // disabled
	maskOpcode       = 0xf << 11
)

// Query is a question with what its packet says of the answer that is wanted.
// It is reused from packet to packet, so that none costs an allocation.
type Query struct {
	ID    uint16
	Bits  uint16 // the header's flags
	Type  uint16
	Class uint16

	EDNS     bool
	Version  uint8  // of EDNS
	UDPSize  uint16 // that the client can take
	DNSSECOK bool

	n     int           // octets of the name
	name  [maxName]byte // as it was asked
	lower [maxName]byte
	held  [8][]byte // see labelsBefore
}

// Name is the name that is asked for, as it stands in the packet. It is good
// until the query is used again.
func (q *Query) Name() []byte { return q.name[:q.n] }

func (q *Query) setName(wire []byte) {
	q.n = copy(q.name[:], wire)
	copy(q.lower[:q.n], wire)
	lower(q.lower[:q.n])
}

// Errors of Parse. ErrIgnore says that no answer may be given.
var (
	ErrIgnore         = errors.New("is no query")
	ErrFormat         = errors.New("malformed query")
	ErrNotImplemented = errors.New("operation is not implemented")
)

// Parse reads a packet. With ErrFormat and ErrNotImplemented the header has
// been read, so that Refuse can answer. Which headers are taken is for
// dns.DefaultMsgAcceptFunc to say, as it is over TCP.
func (q *Query) Parse(b []byte) error {
	*q = Query{}
	if len(b) < headerLen {
		return ErrIgnore
	}
	word := func(i int) uint16 { return binary.BigEndian.Uint16(b[2*i:]) }
	h := dns.Header{Id: word(0), Bits: word(1), Qdcount: word(2), Ancount: word(3), Nscount: word(4), Arcount: word(5)}
	q.ID, q.Bits = h.Id, h.Bits
	switch dns.DefaultMsgAcceptFunc(h) {
	case dns.MsgIgnore:
		return ErrIgnore
	case dns.MsgReject:
		return ErrFormat
	case dns.MsgRejectNotImplemented:
		return ErrNotImplemented
	}
	if h.Bits&maskOpcode != 0 {
		return ErrNotImplemented // NOTIFY: we are nobody's secondary
	}
	rest := b[headerLen:]
	n, err := nameLen(rest)
	if err != nil || len(rest) < n+4 {
		return ErrFormat
	}
	q.setName(rest[:n])
	q.Type, q.Class = binary.BigEndian.Uint16(rest[n:]), binary.BigEndian.Uint16(rest[n+2:])
	return q.parseRecords(rest[n+4:], int(h.Ancount)+int(h.Nscount), int(h.Arcount))
}

// parseRecords goes over what follows the question, looking for an OPT record
// (RFC 6891, section 6.1) among the last ones.
func (q *Query) parseRecords(b []byte, before, additional int) error {
	for i := range before + additional {
		n, err := skipName(b)
		if err != nil || len(b) < n+10 {
			return ErrFormat
		}
		rr := b[n:]
		size := int(binary.BigEndian.Uint16(rr[8:]))
		if len(rr) < 10+size {
			return ErrFormat
		}
		if binary.BigEndian.Uint16(rr) == dns.TypeOPT {
			if i < before || n != 1 || q.EDNS {
				return ErrFormat
			}
			q.EDNS, q.UDPSize = true, binary.BigEndian.Uint16(rr[2:])
			q.Version, q.DNSSECOK = rr[5], rr[6]&0x80 != 0
		}
		b = rr[10+size:]
	}
	return nil
}

// FromMsg reads a message that was unpacked already.
func (q *Query) FromMsg(m *dns.Msg) error {
	*q = Query{ID: m.Id}
	if m.RecursionDesired {
		q.Bits |= bitRecursion
	}
	if m.CheckingDisabled {
		q.Bits |= bitChecking
	}
	q.Bits |= uint16(m.Opcode) << 11 & maskOpcode
	if m.Opcode != dns.OpcodeQuery {
		return ErrNotImplemented
	}
	var wire [maxName + 1]byte
	if len(m.Question) != 1 {
		return ErrFormat
	}
	n, err := dns.PackDomainName(m.Question[0].Name, wire[:], 0, nil, false)
	if err != nil || n > maxName {
		return ErrFormat
	}
	q.setName(wire[:n])
	q.Type, q.Class = m.Question[0].Qtype, m.Question[0].Qclass
	if o := m.IsEdns0(); o != nil {
		q.EDNS, q.Version, q.UDPSize, q.DNSSECOK = true, o.Version(), o.UDPSize(), o.Do()
	}
	return nil
}

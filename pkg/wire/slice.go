package wire

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Slice is one EndpointSlice of a shared service. Namespace and slice name
// stand in the key.
type Slice struct {
	Service   string
	Ports     []Port
	Endpoints []SliceEndpoint // of one family, sorted by address
	// Source is the cluster that the endpoints of a derived slice are in; for
	// readers in the same cluster only.
	Source string
}

// SliceEndpoint is one backend.
type SliceEndpoint struct {
	Addr                        netip.Addr
	Ready, Serving, Terminating bool
	Hostname                    string
	Zone                        string
	// For readers in the same cluster only: the node of the backend, and the
	// zones and nodes that it is meant for, separated by commas.
	Node, ForZones, ForNodes string
}

const (
	// maxSliceEndpoints is what Kubernetes allows in one EndpointSlice.
	maxSliceEndpoints = 1000
	// maxHints is the length of eight names, which is how many hints Kubernetes
	// allows an endpoint.
	maxHints = 8 * (253 + 1)
)

// Encode is the row's value. Endpoints are written column by column, since in
// most slices all are alike and the addresses lie close together: the
// difference of each address to the one before, as a varint; runs of equal
// conditions; runs of equal zones; host names only where there are any.
func (s Slice) Encode() []byte {
	e := newEncoder()
	e.string(1, s.Service)
	e.ports(2, s.Ports)
	if len(s.Endpoints) > 0 {
		s.columns(e)
	}
	e.string(11, s.Source)
	return e.b
}

func (s Slice) columns(e *encoder) {
	var addrs []byte
	var before netip.Addr
	for _, p := range s.Endpoints {
		addrs = appendAddrStep(addrs, before, p.Addr)
		before = p.Addr
	}
	e.bytes(3, addrs)
	e.bytes(4, s.runs(func(p SliceEndpoint) []byte { return []byte{p.conditions()} }))
	e.bytes(5, s.column(func(p SliceEndpoint) string { return p.Zone }))
	e.bytes(6, s.column(func(p SliceEndpoint) string { return p.Hostname }))
	e.bool(7, s.Endpoints[0].Addr.Is6())
	e.bytes(8, s.column(func(p SliceEndpoint) string { return p.Node }))
	e.bytes(9, s.column(func(p SliceEndpoint) string { return p.ForZones }))
	e.bytes(10, s.column(func(p SliceEndpoint) string { return p.ForNodes }))
}

// Compare orders endpoints by address. Of those with the same address, which may
// stand in two slices for a moment, or share it since the network has given it
// out again, the one that counts comes first: as with kube-proxy one that is not
// terminating, then the readier one.
func (p SliceEndpoint) Compare(q SliceEndpoint) int {
	return cmp.Or(p.Addr.Compare(q.Addr), compareBools(p.Terminating, q.Terminating), compareBools(q.Ready, p.Ready), compareBools(q.Serving, p.Serving))
}

// compareBools puts false before true.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

const (
	bitReady = 1 << iota
	bitServing
	bitTerminating
)

func (p SliceEndpoint) conditions() (b byte) {
	if p.Ready {
		b |= bitReady
	}
	if p.Serving {
		b |= bitServing
	}
	if p.Terminating {
		b |= bitTerminating
	}
	return b
}

// runs writes, for each run of endpoints whose value is the same, the run's
// length and the value.
func (s Slice) runs(value func(SliceEndpoint) []byte) (out []byte) {
	for i := 0; i < len(s.Endpoints); {
		v, n := value(s.Endpoints[i]), 1
		for i+n < len(s.Endpoints) && string(value(s.Endpoints[i+n])) == string(v) {
			n++
		}
		out = append(binary.AppendUvarint(out, uint64(n)), v...)
		i += n
	}
	return out
}

// column writes a column of strings in runs, nothing at all if all are empty.
func (s Slice) column(value func(SliceEndpoint) string) []byte {
	any := false
	for _, p := range s.Endpoints {
		any = any || value(p) != ""
	}
	if !any {
		return nil
	}
	return s.runs(func(p SliceEndpoint) []byte {
		v := value(p)
		return append(binary.AppendUvarint(nil, uint64(len(v))), v...)
	})
}

// appendAddrStep writes how far a lies behind before: for IPv4 the difference,
// for IPv6 the difference of the lower half if the upper is the same. The first
// address and one of another upper half are written in full behind a zero.
func appendAddrStep(b []byte, before, a netip.Addr) []byte {
	if before.IsValid() && before.Is4() == a.Is4() && high(before) == high(a) && low(a) > low(before) {
		return binary.AppendUvarint(b, low(a)-low(before))
	}
	return append(append(b, 0), a.AsSlice()...)
}

func high(a netip.Addr) uint64 {
	if a.Is4() {
		return 0
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}

func low(a netip.Addr) uint64 {
	b := a.As16()
	if a.Is4() {
		return uint64(binary.BigEndian.Uint32(b[12:]))
	}
	return binary.BigEndian.Uint64(b[8:])
}

// stepAddr reads what appendAddrStep wrote.
func stepAddr(b []byte, before netip.Addr, six bool) (a netip.Addr, rest []byte, err error) {
	step, n := binary.Uvarint(b)
	if n <= 0 {
		return a, nil, errors.New("garbled address column")
	}
	b = b[n:]
	size := 4
	if six {
		size = 16
	}
	if step == 0 {
		if len(b) < size {
			return a, nil, errors.New("address column ends early")
		}
		a, err = parseAddr(b[:size])
		if err == nil && before.IsValid() && !before.Less(a) {
			err = fmt.Errorf("address %v stands behind %v", a, before)
		}
		return a, b[size:], err
	}
	sum := low(before) + step
	if !before.IsValid() || sum < step || !six && sum > 1<<32-1 {
		return a, nil, errors.New("address column leaves the address space")
	}
	raw := before.As16()
	if six {
		binary.BigEndian.PutUint64(raw[8:], sum)
		a, err = parseAddr(raw[:])
		return a, b, err
	}
	binary.BigEndian.PutUint32(raw[12:], uint32(sum))
	return netip.AddrFrom4([4]byte(raw[12:])), b, nil
}

// DecodeSlice reads what Slice.Encode wrote.
func DecodeSlice(value []byte) (Slice, error) {
	var s Slice
	var addrs, conditions, zones, hosts, nodes, forZones, forNodes []byte
	six := false
	err := decode(value, func(x field) (err error) {
		switch x.n {
		case 1:
			s.Service, err = x.string(63)
		case 2:
			err = appendPort(&s.Ports, x)
		case 3:
			addrs, err = x.bytes(17 * maxSliceEndpoints)
		case 4:
			conditions, err = x.bytes(3 * maxSliceEndpoints)
		case 5:
			zones, err = x.bytes(80 * maxSliceEndpoints)
		case 6:
			hosts, err = x.bytes(80 * maxSliceEndpoints)
		case 7:
			var v uint64
			v, err = x.uint(1)
			six = v == 1
		case 8:
			nodes, err = x.bytes(256 * maxSliceEndpoints)
		case 9:
			forZones, err = x.bytes(MaxValue)
		case 10:
			forNodes, err = x.bytes(MaxValue)
		case 11:
			s.Source, err = x.string(63)
		}
		return err
	})
	if err != nil {
		return Slice{}, err
	}
	if err := s.readAddrs(addrs, six); err != nil {
		return Slice{}, err
	}
	return s, errors.Join(
		s.readRuns("conditions", conditions, readConditions),
		s.readRuns("zones", zones, readText(63, func(p *SliceEndpoint, v string) { p.Zone = v })),
		s.readRuns("host names", hosts, readText(63, func(p *SliceEndpoint, v string) { p.Hostname = v })),
		s.readRuns("nodes", nodes, readText(253, func(p *SliceEndpoint, v string) { p.Node = v })),
		s.readRuns("zones it is for", forZones, readText(maxHints, func(p *SliceEndpoint, v string) { p.ForZones = v })),
		s.readRuns("nodes it is for", forNodes, readText(maxHints, func(p *SliceEndpoint, v string) { p.ForNodes = v })))
}

func (s *Slice) readAddrs(b []byte, six bool) (err error) {
	var a netip.Addr
	if len(b) > 0 {
		s.Endpoints = make([]SliceEndpoint, 0, min(len(b), maxSliceEndpoints))
	}
	for len(b) > 0 {
		if a, b, err = stepAddr(b, a, six); err != nil {
			return err
		}
		if len(s.Endpoints) == maxSliceEndpoints {
			return fmt.Errorf("more than %d endpoints", maxSliceEndpoints)
		}
		s.Endpoints = append(s.Endpoints, SliceEndpoint{Addr: a})
	}
	return nil
}

// readRuns sets a column. An absent column leaves zero values.
func (s *Slice) readRuns(what string, b []byte, read func([]byte) (func(*SliceEndpoint), []byte, error)) error {
	if len(b) == 0 {
		return nil
	}
	at := 0
	for len(b) > 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n == 0 || n > uint64(len(s.Endpoints)-at) {
			return fmt.Errorf("column of %s: run does not fit", what)
		}
		set, rest, err := read(b[size:])
		if err != nil {
			return fmt.Errorf("column of %s: %w", what, err)
		}
		for range n {
			set(&s.Endpoints[at])
			at++
		}
		b = rest
	}
	if at != len(s.Endpoints) {
		return fmt.Errorf("column of %s: has %d of %d endpoints", what, at, len(s.Endpoints))
	}
	return nil
}

func readConditions(b []byte) (func(*SliceEndpoint), []byte, error) {
	if len(b) == 0 || b[0] >= bitTerminating<<1 {
		return nil, nil, errors.New("garbled")
	}
	c := b[0]
	return func(p *SliceEndpoint) {
		p.Ready, p.Serving, p.Terminating = c&bitReady != 0, c&bitServing != 0, c&bitTerminating != 0
	}, b[1:], nil
}

func readText(most uint64, set func(*SliceEndpoint, string)) func([]byte) (func(*SliceEndpoint), []byte, error) {
	return func(b []byte) (func(*SliceEndpoint), []byte, error) {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > most || n > uint64(len(b)-size) {
			return nil, nil, errors.New("garbled")
		}
		v := string(b[size : size+int(n)])
		for i := range len(v) {
			if v[i] < 0x20 || v[i] >= 0x7f {
				return nil, nil, fmt.Errorf("character %#x", v[i])
			}
		}
		return func(p *SliceEndpoint) { set(p, v) }, b[size+int(n):], nil
	}
}

package zone

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// service is all that one name of the cluster set stands for. It is never
// changed, so readers need no lock.
type service struct {
	bare  set // of <service>.<namespace>.svc
	hosts set // of <host>.<cluster>.<service>.<namespace>.svc
}

// set is endpoints, and their addresses ready to be copied into a packet.
type set struct {
	endpoints []endpoint // sorted by label, then by address
	ports     [][]port   // that endpoints refer to
	v4, v6    string     // addresses one behind the other, each once
	entries   int        // endpoints times their ports
	virtual   bool       // addresses of the service itself
}

type endpoint struct {
	// label is the labels that stand before the service's, as packets have them;
	// empty if the service is virtual or these would make no name.
	label string
	addr  netip.Addr
	ports int // index into set.ports
}

type port struct {
	name, protocol string // in lower case
	number         uint16 // 0: none, so there is no SRV record
}

// newService makes what the rows of one import say; nil if it stands for nothing.
func newService(imp model.ServiceImport, rows []model.ImportSlice) *service {
	var hosts set
	for _, r := range rows {
		hosts.add(r)
	}
	hosts.finish()
	if imp.Headless {
		return &service{bare: hosts, hosts: hosts}
	}
	// The virtual addresses are like endpoints without a name of their own.
	ports := parsePorts(imp.Ports)
	if len(ports) == 0 {
		return &service{hosts: hosts}
	}
	bare := set{ports: [][]port{ports}, virtual: true}
	for _, a := range imp.IPs.All() {
		bare.endpoints = append(bare.endpoints, endpoint{addr: a})
	}
	bare.finish()
	return &service{bare: bare, hosts: hosts}
}

func (s *set) add(row model.ImportSlice) {
	if row.Endpoints == "" {
		return // ports of nobody are no reason for a name to exist
	}
	ports := parsePorts(row.Ports)
	if len(ports) == 0 {
		ports = []port{{}} // it has addresses all the same
	}
	at := slices.IndexFunc(s.ports, func(p []port) bool { return slices.Equal(p, ports) })
	if at < 0 {
		at = len(s.ports)
		s.ports = append(s.ports, ports)
	}
	for text := range strings.FieldsSeq(row.Endpoints) {
		ip, hostname, _ := strings.Cut(text, "=")
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			continue
		}
		label, err := ParseName(hostLabel(hostname, addr) + "." + row.Cluster)
		if err != nil {
			label = nil
		}
		s.endpoints = append(s.endpoints, endpoint{label: strings.TrimSuffix(string(label), "\x00"), addr: addr, ports: at})
	}
}

// parsePorts reads model.ImportSlice.Ports.
func parsePorts(text string) (out []port) {
	for f := range strings.FieldsSeq(text) {
		name, rest, _ := strings.Cut(f, "/")
		protocol, number, _ := strings.Cut(rest, "/")
		n, _ := strconv.ParseUint(number, 10, 16) // 0 where there is none
		out = append(out, port{name: strings.ToLower(name), protocol: strings.ToLower(protocol), number: uint16(n)})
	}
	return out
}

// finish sorts, and drops what was said twice: an endpoint may stand in two
// slices while it moves.
func (s *set) finish() {
	slices.SortFunc(s.endpoints, func(a, b endpoint) int {
		return cmp.Or(strings.Compare(a.label, b.label), a.addr.Compare(b.addr), cmp.Compare(a.ports, b.ports))
	})
	s.endpoints = slices.Clip(slices.Compact(s.endpoints))
	s.v4, s.v6 = s.addresses(filter{})
	s.entries = s.count(filter{})
}

// count is how many pairs of an endpoint and a port there are that f takes.
func (s *set) count(f filter) (n int) {
	for _, e := range s.endpoints {
		for _, p := range s.ports[e.ports] {
			if f.takes(p) {
				n++
			}
		}
	}
	return n
}

// addresses are those of the endpoints that have a port which f takes.
func (s *set) addresses(f filter) (v4, v6 string) {
	addrs := make([]netip.Addr, 0, len(s.endpoints))
	for _, e := range s.endpoints {
		if f.any(s.ports[e.ports]) {
			addrs = append(addrs, e.addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	var b4, b6 []byte
	for _, a := range slices.Compact(addrs) {
		if a.Is4() {
			b4 = append(b4, a.AsSlice()...)
		} else {
			b6 = append(b6, a.AsSlice()...)
		}
	}
	return string(b4), string(b6)
}

// exists tells whether there is a port which f takes.
func (s *set) exists(f filter) bool { return slices.ContainsFunc(s.ports, f.any) }

// filter takes ports by name and protocol; empty ones mean all.
type filter struct{ name, protocol []byte }

func (f filter) takes(p port) bool {
	return (len(f.name) == 0 || string(f.name) == p.name) && (len(f.protocol) == 0 || string(f.protocol) == p.protocol)
}

func (f filter) all() bool { return len(f.name) == 0 && len(f.protocol) == 0 }

func (f filter) any(list []port) bool {
	return f.all() && len(list) > 0 || slices.ContainsFunc(list, f.takes)
}

// at are the endpoints of one name.
func (s *set) at(label []byte) set {
	find := func(e endpoint, l []byte) int { return strings.Compare(e.label, string(l)) }
	from, ok := slices.BinarySearchFunc(s.endpoints, label, find)
	if !ok || len(label) == 0 {
		return set{}
	}
	to := from
	for to < len(s.endpoints) && s.endpoints[to].label == string(label) {
		to++
	}
	out := set{endpoints: s.endpoints[from:to], ports: s.ports}
	out.v4, out.v6 = out.addresses(filter{})
	out.entries = out.count(filter{})
	return out
}

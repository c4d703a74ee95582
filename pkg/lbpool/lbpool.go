// Package lbpool decides about addresses of load balancers: which Service gets
// which address out of which LoadBalancerPool, and which node answers for it. It
// holds no state, does no I/O and knows no time; what a Service has is in its
// row, so the answer is the same after every restart.
package lbpool

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Class is the spec.loadBalancerClass of Services that get an address from
// pools and from nobody else.
const Class = "clustermesh.io/pool"

// Key names a Service.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Pool is the row of a LoadBalancerPool.
type Pool struct {
	UID         string
	Generation  int64
	CreatedUnix int64  // seconds since 1970; of two that overlap the older has the addresses
	Blocks      string // ranges "first-last", separated by spaces; see ParseSpec
	// Invalid says why the spec can't be used; empty: it can. The rest is what
	// could be read of it. Such a pool gives nothing out and takes nothing away.
	Invalid string

	Services string // label selector in text form; empty: every Service
	Nodes    string // the same for nodes that may answer
	Disabled bool   // no new addresses
	Silent   bool   // no node answers for its addresses
}

// Service is the row of a Service.
type Service struct {
	UID         string
	CreatedUnix int64
	Labels      string // as labels.Set writes them
	Balanced    bool   // type LoadBalancer, of no class or of ours, and not being deleted
	Local       bool   // externalTrafficPolicy Local
	Families    string // of spec.ipFamilies: "4", "6", "46", "64"
	Request     string // addresses asked for, separated by spaces
	Malformed   string // what of the request is no address
	Ours        string // addresses that we gave it, sorted, separated by spaces
	Torn        bool   // its mark says something else than Ours
	Others      string // addresses and names in its status that we did not give it
}

// Concerned tells whether there is anything to do with it, or to keep clear of.
func (s Service) Concerned() bool { return s.Balanced || s.Ours != "" || s.Torn || s.Others != "" }

// TornMark is at the end of what Held says of a Service that has to be written
// again.
const TornMark = " torn"

// Held is what it has from us; empty if that is nothing.
func (s Service) Held() string {
	if s.Torn {
		return s.Ours + TornMark
	}
	return s.Ours
}

// wants tells whether it has a family, "4" or "6".
func (s Service) wants(family string) bool { return s.Balanced && strings.Contains(s.Families, family) }

func familyOf(a netip.Addr) string {
	if a.Is6() {
		return "6"
	}
	return "4"
}

// Taken is a network that is in use by others.
type Taken struct {
	Prefix netip.Prefix
	What   string // for people: "pods", "node n1", …
}

// taken answers whether an address is in use.
type taken struct {
	single map[netip.Addr]bool
	wide   []netip.Prefix
}

func index(list []Taken) taken {
	out := taken{single: map[netip.Addr]bool{}}
	for _, t := range list {
		if t.Prefix.IsSingleIP() {
			out.single[t.Prefix.Addr()] = true
		} else {
			out.wide = append(out.wide, t.Prefix)
		}
	}
	return out
}

func (t taken) has(a netip.Addr) bool {
	return t.single[a] || slices.ContainsFunc(t.wide, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Range is addresses of one family, both ends included.
type Range struct{ First, Last netip.Addr }

func (r Range) contains(a netip.Addr) bool {
	return r.First.BitLen() == a.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r Range) overlaps(o Range) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

// rangeOf is a whole network.
func rangeOf(p netip.Prefix) Range {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return Range{p.Addr(), last}
}

// pool is a Pool that was read.
type pool struct {
	Pool
	name   string
	ranges []Range // sorted, disjoint
	chosen labels.Selector
}

// read returns the pools, the oldest first.
func read(pools map[string]Pool) []*pool {
	var out []*pool
	for name, p := range pools {
		chosen, err := labels.Parse(p.Services)
		if p.Invalid != "" || err != nil {
			chosen = labels.Everything() // it says nothing about who must not keep what
		}
		out = append(out, &pool{p, name, parseBlocks(p.Blocks), chosen})
	}
	slices.SortFunc(out, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.CreatedUnix, b.CreatedUnix), strings.Compare(a.name, b.name))
	})
	return out
}

// poolOf is the pool that an address is out of, nil if it is of none. What no
// pool has is counted as of one whose spec can't be used, if there is one: it may
// have been there before that was written.
func poolOf(pools []*pool, a netip.Addr) *pool {
	var broken *pool
	for _, p := range pools {
		if p.contains(a) {
			return p
		}
		if broken == nil && p.Invalid != "" {
			broken = p
		}
	}
	return broken
}

func (p *pool) contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r Range) bool { return r.contains(a) })
}

// has tells whether there is any address of a family in it.
func (p *pool) has(family string) bool {
	return slices.ContainsFunc(p.ranges, func(r Range) bool { return familyOf(r.First) == family })
}

// Addrs reads a list of addresses of a row.
func Addrs(list string) []netip.Addr {
	var out []netip.Addr
	for text := range strings.FieldsSeq(list) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// Join writes addresses as rows hold them.
func Join(a model.Addrs) string {
	var texts []string
	for _, x := range a.All() {
		texts = append(texts, x.String())
	}
	return strings.Join(texts, " ")
}

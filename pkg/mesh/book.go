package mesh

import (
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// claim is what a node's row claims.
type claim struct {
	internal, external model.Addrs
	pods               model.Prefixes
}

func claimOf(n model.Node) claim { return claim{n.Internal, n.External, n.PodCIDRs} }

// addrs returns each address once: internal and external may be the same.
func (c claim) addrs() []netip.Addr {
	out := c.internal.All()
	for _, a := range c.external.All() {
		if a != c.internal.V4 && a != c.internal.V6 {
			out = append(out, a)
		}
	}
	return out
}

func (c claim) prefixes() []netip.Prefix { return c.pods.All() }

// book is the claims of one peer's nodes.
type book struct {
	nodes    map[string]claim        // admitted
	byAddr   map[netip.Addr]string   // address → node
	byPrefix map[netip.Prefix]string // pod range → node
	bits     map[int]int             // length of prefixes → how many there are; IPv6 from 1000
	losers   map[string]claim        // refused because of others' claims
	more     bool                    // there were more losers than are noted
}

// maxLosers bounds what is noted of refused nodes.
const maxLosers = 1024

func newBook() *book {
	return &book{nodes: map[string]claim{}, byAddr: map[netip.Addr]string{}, byPrefix: map[netip.Prefix]string{},
		bits: map[int]int{}, losers: map[string]claim{}}
}

func (b *book) add(name string, c claim) {
	b.nodes[name] = c
	for _, a := range c.addrs() {
		b.byAddr[a] = name
	}
	for _, p := range c.prefixes() {
		b.byPrefix[p] = name
		b.bits[bitsKey(p)]++
	}
}

func (b *book) lose(name string, c claim) {
	if len(b.losers) < maxLosers {
		b.losers[name] = c
	} else {
		b.more = true
	}
}

// drop forgets a node and tells whether it had been admitted.
func (b *book) drop(name string) bool {
	delete(b.losers, name)
	c, ok := b.nodes[name]
	if !ok {
		return false
	}
	delete(b.nodes, name)
	for _, a := range c.addrs() {
		delete(b.byAddr, a)
	}
	for _, p := range c.prefixes() {
		delete(b.byPrefix, p)
		if k := bitsKey(p); b.bits[k] == 1 {
			delete(b.bits, k)
		} else {
			b.bits[k]--
		}
	}
	return true
}

// inherit takes over the nodes of an older book that this one does not know.
func (b *book) inherit(old *book) {
	for name, c := range old.nodes {
		if _, known := b.nodes[name]; known {
			continue
		}
		if _, refused := b.losers[name]; !refused && !b.conflicts(c) {
			b.add(name, c)
		}
	}
}

func (b *book) conflicts(c claim) bool {
	for _, a := range c.addrs() {
		if _, taken := b.byAddr[a]; taken {
			return true
		}
	}
	for _, p := range c.prefixes() {
		if _, taken := b.overlapping(p); taken {
			return true
		}
	}
	return false
}

// overlapping returns the node whose pod range overlaps p. There are few
// lengths of prefixes, so wider and equal ranges are found by looking them up;
// narrower ones, which are rare, by going through all.
func (b *book) overlapping(p netip.Prefix) (node string, found bool) {
	narrower := false
	for k := range b.bits {
		bits, six := k%1000, k >= 1000
		if six != p.Addr().Is6() {
			continue
		}
		if bits > p.Bits() {
			narrower = true
			continue
		}
		if node, found = b.byPrefix[netip.PrefixFrom(p.Addr(), bits).Masked()]; found {
			return node, true
		}
	}
	if narrower {
		for q, node := range b.byPrefix {
			if q.Overlaps(p) {
				return node, true
			}
		}
	}
	return "", false
}

func bitsKey(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1000 + p.Bits()
	}
	return p.Bits()
}

// waitsFor tells whether a refused node might be admitted once addrs are free.
func (b *book) waitsFor(addrs []netip.Addr) bool {
	if b.more && len(addrs) > 0 {
		return true
	}
	for _, c := range b.losers {
		own := c.addrs()
		for _, a := range addrs {
			if slices.Contains(own, a) || c.pods.Contains(a) {
				return true
			}
		}
	}
	return false
}

// books are the claims of one peer. While it is listed, both hold.
type books struct {
	ranges []netip.Prefix // of the peer's rules
	now    *book
	next   *book // being listed; nil otherwise
}

// current is the book that rows are entered in now.
func (b *books) current() *book {
	if b.next != nil {
		return b.next
	}
	return b.now
}

func (b *books) both() []*book {
	if b.next != nil {
		return []*book{b.now, b.next}
	}
	return []*book{b.now}
}

// addrsOf returns the addresses of a node in either book.
func (b *books) addrsOf(name string) (out []netip.Addr) {
	for _, x := range b.both() {
		out = append(out, x.nodes[name].addrs()...)
	}
	return out
}

// addrs returns all addresses in either book.
func (b *books) addrs() (out []netip.Addr) {
	for _, x := range b.both() {
		for a := range x.byAddr {
			out = append(out, a)
		}
	}
	return out
}

// claims tells whether either book has a.
func (b *books) claims(a netip.Addr) bool {
	for _, x := range b.both() {
		if _, ok := x.byAddr[a]; ok {
			return true
		}
	}
	return false
}

// touchedBy tells whether a change of others' addresses may change what is admitted.
func (b *books) touchedBy(addrs []netip.Addr) bool {
	for _, x := range b.both() {
		if x.waitsFor(addrs) {
			return true
		}
		for _, a := range addrs {
			if _, ok := x.byAddr[a]; ok {
				return true
			}
			if _, covered := x.overlapping(netip.PrefixFrom(a, a.BitLen())); covered {
				return true
			}
		}
	}
	return false
}

package lbpool

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
)

// ParseSpec reads the networks and the ranges of a pool into Pool.Blocks. Of a
// network of four addresses or more the first is left out, since it stands for
// the network (or for any router, RFC 4291, section 2.6.1), and of an IPv4 one
// the last, which is the broadcast address: some clients and switches refuse to
// talk to them. A range has exactly what it says. Beside an error there is what
// could be read: Services may have addresses of it.
func ParseSpec(cidrs []string, ranges [][2]string) (blocks string, err error) {
	var list []Range
	add := func(r Range, bad error) {
		if bad = cmp.Or(bad, r.unfit()); bad == nil {
			list = append(list, r)
		}
		err = cmp.Or(err, bad)
	}
	for _, text := range cidrs {
		add(parseNetwork(text))
	}
	for _, pair := range ranges {
		add(parseRange(pair[0], pair[1]))
	}
	if len(cidrs)+len(ranges) == 0 {
		err = errors.New("spec has no addresses: give spec.cidrs or spec.ranges")
	}
	return joinRanges(merge(list)), err
}

func parseNetwork(text string) (Range, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() || p.Bits() == 0 {
		return Range{}, fmt.Errorf("spec.cidrs: %q is no network: use one such as 192.0.2.0/28 or 2001:db8::/120", text)
	}
	return usable(p), nil
}

func parseRange(start, stop string) (Range, error) {
	first, err1 := netip.ParseAddr(start)
	last, err2 := netip.ParseAddr(stop)
	r := Range{first.Unmap(), last.Unmap()}
	if err1 != nil || err2 != nil || first.Zone()+last.Zone() != "" || r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("spec.ranges: %q to %q is no range: use two addresses of one family, the lower one first", start, stop)
	}
	return r, nil
}

// unfit says what of a range can be nobody's address in front of a cluster: this
// network, loopback, link-local, multicast, broadcast, and IPv4 in IPv6 (RFC 6890).
func (r Range) unfit() error {
	for _, text := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"} {
		if no := netip.MustParsePrefix(text); r.First.IsValid() && r.overlaps(rangeOf(no)) {
			return fmt.Errorf("spec: %v has addresses of %v, which can't be those of a load balancer: use addresses that clients can reach", r, no)
		}
	}
	return nil
}

// usable is what a pool may give out of a network.
func usable(p netip.Prefix) Range {
	r := rangeOf(p)
	if p.Addr().BitLen()-p.Bits() < 2 {
		return r
	}
	r.First = r.First.Next()
	if p.Addr().Is4() {
		r.Last = r.Last.Prev()
	}
	return r
}

// merge sorts ranges and joins those that overlap or touch.
func merge(list []Range) []Range {
	slices.SortFunc(list, func(a, b Range) int { return a.First.Compare(b.First) })
	var out []Range
	for _, r := range list {
		n := len(out)
		if n > 0 && (out[n-1].overlaps(r) || out[n-1].Last.Next() == r.First && out[n-1].Last.BitLen() == r.First.BitLen()) {
			if out[n-1].Last.Less(r.Last) {
				out[n-1].Last = r.Last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

func joinRanges(list []Range) string {
	texts := make([]string, 0, len(list))
	for _, r := range list {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, " ")
}

// parseBlocks reads what ParseSpec wrote.
func parseBlocks(blocks string) []Range {
	var out []Range
	for text := range strings.FieldsSeq(blocks) {
		first, last, _ := strings.Cut(text, "-")
		a, err1 := netip.ParseAddr(first)
		b, err2 := netip.ParseAddr(last)
		if err1 == nil && err2 == nil {
			out = append(out, Range{a, b})
		}
	}
	return out
}

// most is the largest number of addresses that is told: every reader of JSON
// gets it right.
const most = 1 << 53

// count is the number of addresses of a family, most if there are more.
func count(list []Range, family string) int64 {
	n := new(big.Int)
	for _, r := range list {
		if familyOf(r.First) == family {
			a, b := new(big.Int).SetBytes(r.First.AsSlice()), new(big.Int).SetBytes(r.Last.AsSlice())
			n.Add(n, b.Sub(b, a)).Add(n, big.NewInt(1))
		}
	}
	if !n.IsInt64() || n.Int64() > most {
		return most
	}
	return n.Int64()
}

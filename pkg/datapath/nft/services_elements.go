package nft

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/service"
)

func familyOf(a netip.Addr) ip {
	if a.Is6() {
		return families[1]
	}
	return families[0]
}

// frontKey is the key of a front in all sets; every field is padded to 4 bytes.
func frontKey(k service.FrontKey) []byte {
	return append(k.Addr.AsSlice(), k.Protocol, 0, 0, 0, byte(k.Port>>8), byte(k.Port), 0, 0)
}

func parseFrontKey(b []byte, f ip, outside bool) (service.FrontKey, bool) {
	n := f.addrBytes()
	if len(b) < n+8 {
		return service.FrontKey{}, false
	}
	return service.FrontKey{Addr: nl.AddrOf(b[:n]), Protocol: b[n], Port: binary.BigEndian.Uint16(b[n+4:]), Outside: outside}, true
}

// diff collects what has to be done to sets.
type diff struct {
	del, add map[string][]nftables.SetElement
}

func newDiff() *diff {
	return &diff{map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}}
}

// front turns what is held for a front into what is wanted.
func (d *diff) front(c frontChange, old service.Front, had bool) {
	f, key := familyOf(c.key.Addr), frontKey(c.key)
	was, want := frontElements{verdict: noVerdict}, frontElements{verdict: noVerdict}
	if had {
		was = elementsOf(c.key, old)
	}
	if !c.del {
		want = elementsOf(c.key, c.front)
	}
	verdicts := f.set(setFronts)
	if c.key.Outside {
		verdicts = f.set(setOutside)
	}
	if was.verdict != want.verdict {
		if was.verdict != noVerdict {
			d.del[verdicts] = append(d.del[verdicts], nftables.SetElement{Key: key})
		}
		if want.verdict != noVerdict {
			d.add[verdicts] = append(d.add[verdicts], nftables.SetElement{Key: key, VerdictData: &want.verdict})
		}
	}
	d.slots(f.set(slotSet(c.key.Outside)), key, f.six, was.slots, want.slots)
	d.member(f.set(setNone), key, was.none, want.none)
	d.member(f.set(setRanged), key, was.ranges != "", want.ranges != "")
	d.ranges(f.set(setAllowed), key, was.ranges, want.ranges)
}

func (d *diff) member(set string, key []byte, was, want bool) {
	switch {
	case was && !want:
		d.del[set] = append(d.del[set], nftables.SetElement{Key: key})
	case want && !was:
		d.add[set] = append(d.add[set], nftables.SetElement{Key: key})
	}
}

func (d *diff) slots(set string, key []byte, six bool, was, want service.Slots) {
	a, b := was.Len(six), want.Len(six)
	for i := range max(a, b) {
		if i < a && i < b && was.At(i, six) == want.At(i, six) {
			continue
		}
		at := binary.NativeEndian.AppendUint32(slices.Clip(key), uint32(i))
		if i < a {
			d.del[set] = append(d.del[set], nftables.SetElement{Key: at})
		}
		if i < b {
			d.add[set] = append(d.add[set], nftables.SetElement{Key: at, Val: []byte(want.At(i, six) + "\x00\x00")})
		}
	}
}

func (d *diff) ranges(set string, key []byte, was, want string) {
	if was == want {
		return
	}
	for _, text := range strings.Fields(was) {
		d.del[set] = append(d.del[set], rangeElement(key, netip.MustParsePrefix(text)))
	}
	for _, text := range strings.Fields(want) {
		d.add[set] = append(d.add[set], rangeElement(key, netip.MustParsePrefix(text)))
	}
}

func rangeElement(key []byte, p netip.Prefix) nftables.SetElement {
	r := rangeOf(p.Addr(), p.Bits())
	return nftables.SetElement{Key: slices.Concat(key, r.From.AsSlice()), KeyEnd: slices.Concat(key, r.To.AsSlice())}
}

// noVerdict stands for no element in the verdict maps; the zero Verdict is to drop.
var noVerdict = expr.Verdict{Kind: expr.VerdictBreak}

// frontElements is what a front has in the sets.
type frontElements struct {
	verdict expr.Verdict
	slots   service.Slots
	none    bool
	ranges  string
}

func elementsOf(k service.FrontKey, f service.Front) (e frontElements) {
	e.ranges, e.verdict = f.Ranges, noVerdict
	switch f.Verdict {
	case service.Reject:
		e.none = true
	case service.Drop:
		e.verdict = expr.Verdict{Kind: expr.VerdictDrop}
	case service.Forward:
		e.slots = f.Slots
		name := chainName(f.Slots.Len(k.Addr.Is6()), k.Outside)
		if s, stays := stayOf(k, f); stays {
			name = s.chain()
		}
		e.verdict = expr.Verdict{Kind: expr.VerdictGoto, Chain: name}
	}
	return e
}

// kernelFronts puts fronts together from the elements of all sets.
type kernelFronts struct {
	rows   map[service.FrontKey]service.Front
	chains map[service.FrontKey]string
	slots  map[service.FrontKey]map[uint32]string
	ranges map[service.FrontKey][]netip.Prefix
	ranged map[service.FrontKey]bool
}

func newKernelFronts() *kernelFronts {
	return &kernelFronts{map[service.FrontKey]service.Front{}, map[service.FrontKey]string{}, map[service.FrontKey]map[uint32]string{},
		map[service.FrontKey][]netip.Prefix{}, map[service.FrontKey]bool{}}
}

// take reads the elements of a set.
func (k *kernelFronts) take(set string, elements []element) {
	f, name := families[0], set[:len(set)-1]
	if set[len(set)-1] == '6' {
		f = families[1]
	}
	n := f.addrBytes()
	for _, e := range elements {
		key, ok := parseFrontKey(e.key, f, name == setOutside || name == setOutSlot)
		if !ok {
			continue
		}
		switch name {
		case setFronts, setOutside:
			k.chains[key] = e.chain
			if k.rows[key] = (service.Front{}); e.chain == "" {
				k.rows[key] = service.Front{Verdict: service.Drop}
			}
		case setSlots, setOutSlot:
			if k.slots[key] == nil {
				k.slots[key] = map[uint32]string{}
			}
			k.slots[key][nl.U32Of(e.key[n+8:])] = string(e.data[:min(n+2, len(e.data))])
		case setNone:
			k.rows[key] = service.Front{Verdict: service.Reject}
		case setRanged:
			k.ranged[key] = true
		case setAllowed:
			if len(e.key) == n+8+n && len(e.keyEnd) == len(e.key) {
				from, to := nl.AddrOf(e.key[n+8:]), nl.AddrOf(e.keyEnd[n+8:])
				k.ranges[key] = append(k.ranges[key], netip.PrefixFrom(from, length(plan.Range{From: from, To: to})))
			}
		}
	}
}

// fronts are the rows; not ok if elements do not fit together.
func (k *kernelFronts) fronts() (_ map[service.FrontKey]service.Front, ok bool) {
	for key, slots := range k.slots {
		six := key.Addr.Is6()
		var list strings.Builder
		for i := range uint32(len(slots)) {
			list.WriteString(slots[i])
		}
		front, known := k.rows[key]
		front.Slots = service.Slots(list.String())
		s, fits := parseChain(k.chains[key])
		front.AffinitySeconds = uint32(s.seconds)
		if !known || !fits || s.outside != key.Outside || s.slots != len(slots) || s.slots != front.Slots.Len(six) {
			return nil, false
		}
		k.rows[key] = front
	}
	for key, front := range k.rows {
		if front.Verdict == service.Forward && front.Slots == "" || k.ranged[key] != (len(k.ranges[key]) > 0) {
			return nil, false
		}
		front.Ranges = prefixList(k.ranges[key])
		k.rows[key] = front
	}
	return k.rows, true
}

// prefixList writes prefixes as rows hold them.
func prefixList(list []netip.Prefix) string {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	texts := make([]string, 0, len(list))
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, " ")
}

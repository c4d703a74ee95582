package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// The sets of one family, by the number behind their names.
const (
	setFronts  = "fronts"  // address . protocol . port : verdict
	setOutside = "outside" // the same, for packets from outside of the cluster
	setSlots   = "slots"   // address . protocol . port . slot : address . port
	setOutSlot = "outslot" // the same, for outside
	setNone    = "none"    // address . protocol . port that have no backend
	setRanged  = "ranged"  // address . protocol . port that not everybody may use
	setAllowed = "allowed" // address . protocol . port . client (a range) that may
	setStay    = "stay"    // client . address . protocol . port : address . port
)

// stay is a chain for clients that stay with their backend: the number of slots
// to pick from at first, and for how long.
type stay struct {
	slots, seconds int
	outside        bool
}

func stayOf(k service.FrontKey, f service.Front) (stay, bool) {
	if f.AffinitySeconds == 0 || f.Verdict != service.Forward {
		return stay{}, false
	}
	return stay{f.Slots.Len(k.Addr.Is6()), int(f.AffinitySeconds), k.Outside}, true
}

func (s stay) chain() string {
	return fmt.Sprintf("%s_stay%d", chainName(s.slots, s.outside), s.seconds)
}

func compareStays(a, b stay) int { return strings.Compare(a.chain(), b.chain()) }

// chainName is that of the chain which picks one of n slots.
func chainName(n int, outside bool) string {
	if outside {
		return fmt.Sprintf("outside%d", n)
	}
	return fmt.Sprintf("pick%d", n)
}

// parseChain reads chainName and stay.chain.
func parseChain(name string) (s stay, ok bool) {
	s.outside = strings.HasPrefix(name, "outside")
	head, tail, stays := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(name, "outside"), "pick"), "_stay")
	if _, err := fmt.Sscanf(head, "%d", &s.slots); err != nil {
		return stay{}, false
	}
	if stays {
		if _, err := fmt.Sscanf(tail, "%d", &s.seconds); err != nil {
			return stay{}, false
		}
	}
	return s, true
}

// staysOf are the chains of clients that stay among all chains.
func staysOf(chains []chainInfo) []stay {
	var out []stay
	for _, c := range chains {
		if s, ok := parseChain(c.name); ok && s.seconds > 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, compareStays)
	return out
}

// ip is what the rules of a family are made with.
type ip struct {
	six      bool
	is       exprs
	nfproto  uint32
	src, dst func(register uint32) exprs
	words    uint32 // registers that an address takes
}

var families = []ip{
	{false, isIPv4(), unix.NFPROTO_IPV4, src4, dst4, 1},
	{true, isIPv6(), unix.NFPROTO_IPV6, src6, dst6, 4},
}

func (f ip) set(name string) string {
	if f.six {
		return name + "6"
	}
	return name + "4"
}

func (f ip) addrBytes() int { return int(f.words) * 4 }

// front puts the key of a front into registers from first on.
func (f ip) front(first uint32) exprs {
	return join(f.dst(first), exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first + f.words}},
		transport(udpDstPortOffset, 2, first+f.words+1)) // TCP and SCTP have their port there as well
}

// keyWords is how many registers front fills.
func (f ip) keyWords() uint32 { return f.words + 2 }

func (f ip) lookup(set string, from, to uint32) exprs {
	return exprs{&expr.Lookup{SourceRegister: from, DestRegister: to, IsDestRegSet: true, SetName: f.set(set)}}
}

func (f ip) goTo(set string) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: f.set(set)}}
}

func (f ip) inSet(set string) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg0, SetName: f.set(set)}}
}

// translate sends the connection to the address and port in registers.
func (f ip) translate(register uint32) exprs {
	return exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nfproto, RegAddrMin: register, RegProtoMin: register + f.words, Specified: true}}
}

func random(n int, register uint32) exprs {
	return exprs{&expr.Numgen{Register: register, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}}
}

func slotSet(outside bool) string {
	if outside {
		return setOutSlot
	}
	return setSlots
}

// pick chooses one of n slots at random.
func pick(n int, outside bool) []rule {
	var out []rule
	for _, f := range families {
		out = append(out, rule{exprs: join(f.is, f.front(reg0), random(n, reg0+f.keyWords()), f.lookup(slotSet(outside), reg0, reg0), f.translate(reg0))})
	}
	return out
}

// rules sends a client where it went before, and remembers where a new one goes.
// Where there is no room for that, the second rule ends at its dynset, and the
// third sends the client on without.
// All 16 registers are in use for IPv6: client 4, front 6, slot 1, backend 5.
func (s stay) rules() []rule {
	var out []rule
	for _, f := range families {
		front, slot := reg0+f.words, reg0+f.words+f.keyWords()
		key := join(f.is, f.src(reg0), f.front(front))
		keep := func(backend uint32) exprs {
			return join(exprs{&expr.Dynset{SrcRegKey: reg0, SrcRegData: backend, SetName: f.set(setStay), Operation: unix.NFT_DYNSET_OP_UPDATE,
				Timeout: time.Duration(s.seconds) * time.Second}}, f.translate(backend))
		}
		out = append(out,
			rule{"known client", join(key, f.lookup(setStay, reg0, slot), keep(slot))},
			rule{"", join(key, random(s.slots, slot), f.lookup(slotSet(s.outside), front, slot+1), keep(slot+1))},
			rule{"not remembered", join(key, random(s.slots, slot), f.lookup(slotSet(s.outside), front, slot+1), count(AffinityFull), f.translate(slot+1))})
	}
	return out
}

func (f ip) frontType() nftables.SetDatatype {
	return nftables.MustConcatSetType(addrType(f.addrBytes()), nftables.TypeInetProto, nftables.TypeInetService)
}

func (f ip) backendType() nftables.SetDatatype {
	return nftables.MustConcatSetType(addrType(f.addrBytes()), nftables.TypeInetService)
}

// stayMost bounds what clients can make the kernel remember.
const stayMost = 1 << 18

// serviceSets are the sets of both families.
func serviceSets() []*nftables.Set {
	var out []*nftables.Set
	for _, f := range families {
		at := &nftables.Table{Family: nftables.TableFamilyINet, Name: servicesName}
		addr := addrType(f.addrBytes())
		slot := nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
		out = append(out,
			&nftables.Set{Table: at, Name: f.set(setFronts), IsMap: true, KeyType: f.frontType(), DataType: nftables.TypeVerdict},
			&nftables.Set{Table: at, Name: f.set(setOutside), IsMap: true, KeyType: f.frontType(), DataType: nftables.TypeVerdict},
			&nftables.Set{Table: at, Name: f.set(setSlots), IsMap: true, KeyType: slot, DataType: f.backendType()},
			&nftables.Set{Table: at, Name: f.set(setOutSlot), IsMap: true, KeyType: slot, DataType: f.backendType()},
			&nftables.Set{Table: at, Name: f.set(setNone), KeyType: f.frontType()},
			&nftables.Set{Table: at, Name: f.set(setRanged), KeyType: f.frontType()},
			&nftables.Set{Table: at, Name: f.set(setAllowed), Interval: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService, addr)},
			&nftables.Set{Table: at, Name: f.set(setStay), IsMap: true, Dynamic: true, HasTimeout: true, Timeout: time.Hour * 3, Size: stayMost,
				KeyType: nftables.MustConcatSetType(addr, addr, nftables.TypeInetProto, nftables.TypeInetService), DataType: f.backendType()})
	}
	return out
}

// AffinityFull counts clients that can't stay with their backend, for there are
// too many of them.
const AffinityFull = "affinity_full"

const dropRange = "drop_source_range" // to an address of a load balancer, from a client that may not use it

// servicesSkeleton is the table without elements.
func servicesSkeleton(vips []netip.Prefix, stays []stay) table {
	before := nftables.ChainPriority(*nftables.ChainPriorityNATDest - 1)
	chains := []chain{
		{"ranges", nftables.ChainTypeFilter, *nftables.ChainHookPrerouting, before, sourceRanges()},
		{"prerouting", nftables.ChainTypeNAT, *nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, slices.Concat(fromOutside(), toFronts())},
		{"output", nftables.ChainTypeNAT, *nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, toFronts()},
		{"input", nftables.ChainTypeFilter, *nftables.ChainHookInput, *nftables.ChainPriorityFilter, rejected(nil)},
		{"forward", nftables.ChainTypeFilter, *nftables.ChainHookForward, *nftables.ChainPriorityFilter, rejected(vips)},
		{"local", nftables.ChainTypeFilter, *nftables.ChainHookOutput, *nftables.ChainPriorityFilter, rejected(vips)},
		{name: "refuse", rules: refuse()},
	}
	for _, outside := range []bool{false, true} {
		for _, n := range service.Classes() {
			chains = append(chains, chain{name: chainName(n, outside), rules: pick(n, outside)})
		}
	}
	for _, s := range stays {
		chains = append(chains, chain{name: s.chain(), rules: s.rules()})
	}
	return table{nftables.TableFamilyINet, servicesName, chains, serviceSets(), []string{dropRange, AffinityFull}}
}

func toFronts() []rule {
	var out []rule
	for _, f := range families {
		out = append(out, rule{exprs: join(f.is, f.front(reg0), f.goTo(setFronts))})
	}
	return out
}

func fromOutside() []rule {
	var out []rule
	for _, f := range families {
		out = append(out, rule{"not from a pod", join(f.is, metaIsNot(expr.MetaKeyIIFNAME, []byte(plan.IfPrefix)), f.front(reg0), f.goTo(setOutside))})
	}
	return out
}

// sourceRanges come before the address is translated; only the first packet of
// a connection is looked at.
func sourceRanges() []rule {
	var out []rule
	for _, f := range families {
		out = append(out, rule{"from a client that may not use this address", join(stateNew(), f.is, f.front(reg0), f.inSet(setRanged), f.src(reg0+f.keyWords()),
			exprs{&expr.Lookup{SourceRegister: reg0, SetName: f.set(setAllowed), Invert: true}}, drop(dropRange))})
	}
	return out
}

// rejected tells clients that there is no backend. A virtual address that is
// still in a packet here was no front: it must not leave by the default route.
func rejected(vips []netip.Prefix) []rule {
	var out []rule
	for _, f := range families {
		out = append(out, rule{"no backend", join(f.is, f.front(reg0), f.inSet(setNone), jump("refuse"))})
	}
	for _, p := range vips {
		f := families[0]
		if p.Addr().Is6() {
			f = families[1]
		}
		out = append(out, rule{"no such service", join(f.is, f.dst(reg0), masked(reg0, f.addrBytes(), p.Bits()), equal(p.Masked().Addr().AsSlice()), jump("refuse"))})
	}
	return out
}

func refuse() []rule {
	return []rule{
		{"", join(metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}), exprs{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})},
		{"", exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}},
	}
}

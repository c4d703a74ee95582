package lbpool

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Input is all that the allocation depends on.
type Input struct {
	Pools    map[string]Pool
	Services map[Key]Service
	Taken    []Taken // by pods, Services and nodes
	// Reserved are addresses that Services have whose rows are not there yet.
	Reserved map[Key]string
	// External are the networks that addresses of Services must lie in
	// (services.externalCIDRs); empty: any.
	External []netip.Prefix
}

// Result is what Services should have, and what there is to say.
type Result struct {
	Given map[Key]model.Addrs // Services without an address from us are not in it
	Pools map[string]PoolState
	// Waiting says, by Service, what it could not get. It has what Given says.
	Waiting map[Key]string
}

// PoolState is the state of one pool.
type PoolState struct {
	Reason, Message  string // why it gives nothing out, or not enough; empty: all is well
	Capacity4, Used4 int64
	Capacity6, Used6 int64
}

// Allocate gives every Service an address of each of its families. What a
// Service has it keeps as long as it may: the address lies in a pool that
// matches, or nobody can tell which one it lies in because a spec can't be read,
// and nothing else uses it, whatever else has become of the pool. Then
// addresses that are asked for are given, then the lowest free ones of the
// oldest pool; older Services are served first.
func Allocate(in Input) Result {
	a := newAllocator(in)
	for _, s := range a.services {
		a.keep(s)
	}
	for _, s := range a.services {
		a.adopt(s)
	}
	a.avoid()
	for _, s := range a.services {
		a.request(s)
	}
	for _, s := range a.services {
		a.fill(s)
	}
	return a.result()
}

type allocator struct {
	in       Input
	taken    taken
	pools    []*pool
	closed   map[string]PoolState // pools that give nothing out, and why
	services []*candidate
	owner    map[netip.Addr]*candidate
	lowest   map[string]map[string]netip.Addr // by pool and family: below are none free
	waiting  map[string][]string              // by pool: Services that it could not serve
}

// candidate is a Service that pools match.
type candidate struct {
	Service
	key     Key
	pools   []*pool
	has     map[string]netip.Addr // by family
	trouble []string
}

func newAllocator(in Input) *allocator {
	a := &allocator{in: in, taken: index(in.Taken), pools: read(in.Pools), owner: map[netip.Addr]*candidate{}, lowest: map[string]map[string]netip.Addr{}, waiting: map[string][]string{}}
	a.closed = a.judge()
	for key, list := range in.Reserved {
		for _, addr := range Addrs(list) {
			a.owner[addr] = &candidate{key: key}
		}
	}
	for key, s := range in.Services {
		c := &candidate{Service: s, key: key, has: map[string]netip.Addr{}}
		if !s.Balanced {
			continue
		}
		for _, p := range a.pools {
			if matches(p.chosen, s.Labels) {
				c.pools = append(c.pools, p)
			}
		}
		if len(c.pools) > 0 {
			a.services = append(a.services, c)
		}
	}
	slices.SortFunc(a.services, func(x, y *candidate) int {
		return cmp.Or(cmp.Compare(x.CreatedUnix, y.CreatedUnix), strings.Compare(x.key.Namespace, y.key.Namespace), strings.Compare(x.key.Name, y.key.Name))
	})
	return a
}

// keep lets a Service have what we gave it.
func (a *allocator) keep(c *candidate) {
	for _, addr := range Addrs(c.Ours) {
		if a.keeps(c, addr) && a.owner[addr] == nil && !c.has[familyOf(addr)].IsValid() {
			a.take(c, addr)
		}
	}
}

// adopt takes over what somebody else gave a Service before, if all of that is
// out of our pools: what was served by another product until now keeps its
// address.
func (a *allocator) adopt(c *candidate) {
	if c.Others == "" || c.Ours != "" {
		return
	}
	list := Addrs(c.Others)
	if len(list) != len(strings.Fields(c.Others)) || slices.ContainsFunc(list, func(x netip.Addr) bool { return !a.valid(c, x) || a.owner[x] != nil }) {
		c.pools = nil // another controller serves it
		return
	}
	for _, addr := range list {
		if !c.has[familyOf(addr)].IsValid() {
			a.take(c, addr)
		}
	}
}

// avoid keeps clear of what other controllers have given to Services.
func (a *allocator) avoid() {
	for key, s := range a.in.Services {
		for _, addr := range Addrs(s.Others) {
			if other := a.owner[addr]; other == nil || other.pools == nil && key.compare(other.key) < 0 {
				a.owner[addr] = &candidate{key: key}
			}
		}
	}
}

// request gives a Service the addresses that it asks for. It keeps what it has
// until it can have them.
func (a *allocator) request(c *candidate) {
	if len(c.pools) == 0 {
		return
	}
	if c.Malformed != "" {
		c.refuse("%q is no address: give addresses, separated by commas", c.Malformed)
	}
	seen := map[string]netip.Addr{}
	for _, addr := range Addrs(c.Request) {
		family := familyOf(addr)
		switch other := a.owner[addr]; {
		case seen[family].IsValid():
			c.refuse("%v is asked for beside %v: a Service has one address of each family", addr, seen[family])
			continue
		case !c.wants(family):
			c.refuse("%v is not of the families of the Service", addr)
			continue
		case other == c:
		case other != nil:
			c.refuse("%v belongs to Service %v", addr, other.key)
		case !a.free(c, addr):
			c.refuse("%v is in no pool that serves this Service", addr)
		default:
			if old := c.has[family]; old.IsValid() {
				delete(a.owner, old)
			}
			a.take(c, addr)
		}
		seen[family] = addr
	}
	c.asked(seen)
}

// asked notes the families that it has asked for an address of: it gets no other.
func (c *candidate) asked(seen map[string]netip.Addr) {
	for family := range seen {
		c.Families = strings.ReplaceAll(c.Families, family, "")
	}
}

// fill gives a Service what it lacks, out of the first pool that has it.
func (a *allocator) fill(c *candidate) {
	for _, family := range strings.Split(c.Families, "") {
		if c.has[family].IsValid() || family == "" {
			continue
		}
		var full []string
		for _, p := range c.pools {
			if !p.has(family) {
				continue
			}
			if _, closed := a.closed[p.name]; !closed && !p.Disabled {
				if addr := a.next(p, family); addr.IsValid() {
					a.take(c, addr)
					break
				}
			}
			full = append(full, p.name)
			a.waiting[p.name] = append(a.waiting[p.name], c.key.String())
		}
		if !c.has[family].IsValid() && len(full) > 0 {
			c.refuse("no IPv%s address is left in pool %s", family, strings.Join(full, ", "))
		}
	}
	if i := slices.IndexFunc(c.pools, func(p *pool) bool { return p.Invalid != "" }); i >= 0 && len(c.has)+len(c.trouble) == 0 {
		c.refuse("pool %s can't be used: %s", c.pools[i].name, c.pools[i].Invalid)
	}
}

// next is the lowest free address of a pool, not valid if there is none.
func (a *allocator) next(p *pool, family string) netip.Addr {
	if a.lowest[p.name] == nil {
		a.lowest[p.name] = map[string]netip.Addr{}
	}
	from := a.lowest[p.name][family]
	for _, r := range p.ranges {
		if familyOf(r.First) != family || from.IsValid() && r.Last.Less(from) {
			continue
		}
		addr := r.First
		if from.IsValid() && r.contains(from) {
			addr = from
		}
		for ; r.contains(addr); addr = addr.Next() {
			if a.owner[addr] == nil && !a.taken.has(addr) {
				a.lowest[p.name][family] = addr
				return addr
			}
		}
	}
	return netip.Addr{}
}

func (a *allocator) take(c *candidate, addr netip.Addr) {
	a.owner[addr], c.has[familyOf(addr)] = c, addr
}

// keeps tells whether a Service may go on using an address that it has from us.
func (a *allocator) keeps(c *candidate, addr netip.Addr) bool {
	p := poolOf(a.pools, addr)
	return a.valid(c, addr) || p != nil && p.Invalid != "" && c.wants(familyOf(addr)) && !a.taken.has(addr)
}

// valid tells whether a Service may use an address of a pool.
func (a *allocator) valid(c *candidate, addr netip.Addr) bool {
	return c.wants(familyOf(addr)) && slices.ContainsFunc(c.pools, func(p *pool) bool { return p.contains(addr) }) && !a.taken.has(addr)
}

// free tells whether it may be given an address that nobody has.
func (a *allocator) free(c *candidate, addr netip.Addr) bool {
	return a.valid(c, addr) && slices.ContainsFunc(c.pools, func(p *pool) bool {
		_, closed := a.closed[p.name]
		return !closed && !p.Disabled && p.contains(addr)
	})
}

func (c *candidate) refuse(format string, args ...any) {
	c.trouble = append(c.trouble, fmt.Sprintf(format, args...))
}

func (a *allocator) result() Result {
	out := Result{Given: map[Key]model.Addrs{}, Pools: map[string]PoolState{}, Waiting: map[Key]string{}}
	used := map[string]map[string]int64{}
	for _, c := range a.services {
		var has model.Addrs
		for _, addr := range c.has {
			has = has.Add(addr)
			name := poolOf(a.pools, addr).name
			if used[name] == nil {
				used[name] = map[string]int64{}
			}
			used[name][familyOf(addr)]++
		}
		if has != (model.Addrs{}) {
			out.Given[c.key] = has
		}
		if len(c.trouble) > 0 {
			out.Waiting[c.key] = strings.Join(c.trouble, "; ")
		}
	}
	for name, p := range a.in.Pools {
		ranges := parseBlocks(p.Blocks)
		st := a.stateOf(name, p)
		st.Capacity4, st.Capacity6 = count(ranges, "4"), count(ranges, "6")
		st.Used4, st.Used6 = used[name]["4"], used[name]["6"]
		out.Pools[name] = st
	}
	return out
}

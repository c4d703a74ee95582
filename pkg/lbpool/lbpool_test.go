package lbpool

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// blocksOf is a pool of networks, and of ranges written "first-last".
func blocksOf(t *testing.T, list ...string) string {
	t.Helper()
	var cidrs []string
	var ranges [][2]string
	for _, text := range list {
		if first, last, ok := strings.Cut(text, "-"); ok {
			ranges = append(ranges, [2]string{first, last})
		} else {
			cidrs = append(cidrs, text)
		}
	}
	blocks, err := ParseSpec(cidrs, ranges)
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

func TestParseSpec(t *testing.T) {
	for name, c := range map[string]struct {
		list []string
		want string
	}{
		"a network without its first and last address": {[]string{"192.0.2.0/29"}, "192.0.2.1-192.0.2.6"},
		"the smallest one of which that holds":         {[]string{"192.0.2.4/30"}, "192.0.2.5-192.0.2.6"},
		"two addresses are used both":                  {[]string{"192.0.2.4/31"}, "192.0.2.4-192.0.2.5"},
		"one address":                                  {[]string{"192.0.2.4/32", "2001:db8::7/128"}, "192.0.2.4-192.0.2.4 2001:db8::7-2001:db8::7"},
		"IPv6 has no broadcast":                        {[]string{"2001:db8::/126"}, "2001:db8::1-2001:db8::3"},
		"a range is taken at its word":                 {[]string{"192.0.2.0-192.0.2.255"}, "192.0.2.0-192.0.2.255"},
		"what touches or overlaps is one":              {[]string{"192.0.2.9-192.0.2.12", "192.0.2.4-192.0.2.8", "192.0.2.10-192.0.2.11", "192.0.2.14-192.0.2.14"}, "192.0.2.4-192.0.2.12 192.0.2.14-192.0.2.14"},
		"the last address that there is":               {[]string{"ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == "" {
				if _, err := ParseSpec(nil, [][2]string{{"ffff::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}}); err == nil {
					t.Error("multicast was taken")
				}
				return
			}
			got := blocksOf(t, c.list...)
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if again := joinRanges(parseBlocks(got)); again != got {
				t.Errorf("read back %q", again)
			}
		})
	}
	for _, bad := range [][]string{nil, {"x"}, {"192.0.2.1/24"}, {"0.0.0.0/0"}, {"127.0.0.0/8"}, {"fe80::/64"},
		{"0.0.0.0/8"}, {"0.0.0.0/1"}, {"169.0.0.0/8"}, {"255.255.255.255/32"}, {"::/1"}, {"fe00::/7"}, {"::ffff:192.0.2.0/120"}} {
		if blocks, err := ParseSpec(bad, nil); err == nil {
			t.Errorf("%q was taken for %q", bad, blocks)
		}
	}
	if blocks, err := ParseSpec([]string{"x", "192.0.2.0/30"}, [][2]string{{"a", "b"}, {"198.51.100.1", "198.51.100.2"}}); err == nil || blocks != "192.0.2.1-192.0.2.2 198.51.100.1-198.51.100.2" {
		t.Errorf("what can be read of a bad spec is %q, %v", blocks, err)
	}
	for _, bad := range [][2]string{{"126.0.0.1", "128.0.0.1"}, {"223.255.255.1", "224.0.0.9"}, {"2001:db8::", "ff02::1"}, {"192.0.2.9", "192.0.2.1"}, {"192.0.2.1", "2001:db8::"}, {"fe80::1%eth0", "fe80::2%eth0"}} {
		if blocks, err := ParseSpec(nil, [][2]string{bad}); err == nil || blocks != "" {
			t.Errorf("%q was taken for %q", bad, blocks)
		}
	}
}

func TestCount(t *testing.T) {
	for text, want := range map[string]int64{"192.0.2.0/24": 254, "192.0.2.0/32": 1, "10.0.0.0/8": 1<<24 - 2, "2001:db8::/112": 1<<16 - 1, "2001:db8::/64": most} {
		family := familyOf(netip.MustParsePrefix(text).Addr())
		if got := count(parseBlocks(blocksOf(t, text)), family); got != want {
			t.Errorf("%s has %d addresses, want %d", text, got, want)
		}
	}
}

func TestAllocate(t *testing.T) {
	pool := func(list ...string) Pool { return Pool{Blocks: blocksOf(t, list...)} }
	with := func(p Pool, edit func(*Pool)) Pool { edit(&p); return p }
	v4, dual := Service{Balanced: true, Families: "4"}, Service{Balanced: true, Families: "46"}
	svc := func(s Service, edit func(*Service)) Service { edit(&s); return s }
	has := func(s Service, ours string) Service { s.Ours = ours; return s }
	asks := func(s Service, request string) Service { s.Request = request; return s }
	created := func(s Service, at int64) Service { s.CreatedUnix = at; return s }
	type pools = map[string]Pool
	type services = map[string]Service
	for name, c := range map[string]struct {
		pools    pools
		services services
		taken    []Taken
		external []netip.Prefix
		given    map[string]string
		waiting  []string // Services
		reasons  map[string]string
	}{
		"the lowest, the older Service first": {pools{"p": pool("192.0.2.0/29")}, services{"a": created(v4, 2), "b": created(v4, 1)}, nil, nil,
			map[string]string{"a": "192.0.2.2", "b": "192.0.2.1"}, nil, nil},
		"what is held stays": {pools{"p": pool("192.0.2.0/29")}, services{"a": has(created(v4, 2), "192.0.2.1"), "b": created(v4, 1)}, nil, nil,
			map[string]string{"a": "192.0.2.1", "b": "192.0.2.2"}, nil, nil},
		"also while the pool is disabled": {pools{"p": with(pool("192.0.2.0/29"), func(p *Pool) { p.Disabled = true })}, services{"a": has(v4, "192.0.2.4"), "b": v4}, nil, nil,
			map[string]string{"a": "192.0.2.4"}, []string{"b"}, map[string]string{"p": ReasonDisabled}},
		"both families": {pools{"p": pool("192.0.2.0/29", "2001:db8::/120")}, services{"a": dual}, nil, nil,
			map[string]string{"a": "192.0.2.1 2001:db8::1"}, nil, nil},
		"the family that there is": {pools{"p": pool("192.0.2.0/29")}, services{"a": dual}, nil, nil, map[string]string{"a": "192.0.2.1"}, nil, nil},
		"one family is full": {pools{"p": pool("192.0.2.4/32", "2001:db8::/120")}, services{"a": has(dual, "192.0.2.4"), "b": dual}, nil, nil,
			map[string]string{"a": "192.0.2.4 2001:db8::1", "b": "2001:db8::2"}, []string{"b"}, map[string]string{"p": ReasonFull}},
		"a family is given up": {pools{"p": pool("192.0.2.0/29", "2001:db8::/120")}, services{"a": has(v4, "192.0.2.4 2001:db8::9")}, nil, nil,
			map[string]string{"a": "192.0.2.4"}, nil, nil},
		"asked for": {pools{"p": pool("192.0.2.0/29")}, services{"a": asks(v4, "192.0.2.5"), "b": v4}, nil, nil, map[string]string{"a": "192.0.2.5", "b": "192.0.2.1"}, nil, nil},
		"asked for in both families": {pools{"p": pool("192.0.2.0/29", "2001:db8::/120")}, services{"a": asks(dual, "2001:db8::44 192.0.2.5")}, nil, nil,
			map[string]string{"a": "192.0.2.5 2001:db8::44"}, nil, nil},
		"asked for later: it moves, and another one may have the old": {pools{"p": pool("192.0.2.4/31")}, services{"a": asks(has(v4, "192.0.2.4"), "192.0.2.5"), "b": v4}, nil, nil,
			map[string]string{"a": "192.0.2.5", "b": "192.0.2.4"}, nil, nil},
		"asked for what another one has: nobody loses any": {pools{"p": pool("192.0.2.0/29")}, services{"a": asks(has(v4, "192.0.2.4"), "192.0.2.5"), "b": has(v4, "192.0.2.5")}, nil, nil,
			map[string]string{"a": "192.0.2.4", "b": "192.0.2.5"}, []string{"a"}, nil},
		"asked for what is in no pool: it gets no other": {pools{"p": pool("192.0.2.0/29")}, services{"a": asks(v4, "203.0.113.1")}, nil, nil, nil, []string{"a"}, nil},
		"asked for the broadcast address":                {pools{"p": pool("192.0.2.0/29")}, services{"a": asks(v4, "192.0.2.7")}, nil, nil, nil, []string{"a"}, nil},
		"asked for twice, of the wrong family, and nonsense": {pools{"p": pool("192.0.2.0/29")},
			services{"a": svc(asks(v4, "192.0.2.5 192.0.2.6 2001:db8::1"), func(s *Service) { s.Malformed = "x" })}, nil, nil,
			map[string]string{"a": "192.0.2.5"}, []string{"a"}, nil},
		"full": {pools{"p": pool("192.0.2.4/31")}, services{"a": created(v4, 1), "b": created(v4, 2), "c": created(v4, 3)}, nil, nil,
			map[string]string{"a": "192.0.2.4", "b": "192.0.2.5"}, []string{"c"}, map[string]string{"p": ReasonFull}},
		"the next pool, the older one first": {pools{"old": with(pool("192.0.2.4/32"), func(p *Pool) { p.CreatedUnix = 1 }), "new": with(pool("198.51.100.4/32"), func(p *Pool) { p.CreatedUnix = 2 })},
			services{"a": created(v4, 1), "b": created(v4, 2)}, nil, nil, map[string]string{"a": "192.0.2.4", "b": "198.51.100.4"}, nil, map[string]string{"old": ReasonFull}},
		"selected": {pools{"p": with(pool("192.0.2.0/29"), func(p *Pool) { p.Services = "app in (a,b),!x" })},
			services{"a": svc(v4, func(s *Service) { s.Labels = "app=a" }), "b": svc(v4, func(s *Service) { s.Labels = "app=b,x=" }), "c": v4}, nil, nil,
			map[string]string{"a": "192.0.2.1"}, nil, nil},
		"no longer selected": {pools{"p": with(pool("192.0.2.0/29"), func(p *Pool) { p.Services = "app" })}, services{"a": has(v4, "192.0.2.1")}, nil, nil, nil, nil, nil},
		"the pool is gone":   {nil, services{"a": has(v4, "192.0.2.1")}, nil, nil, nil, nil, nil},
		"the pool is smaller": {pools{"p": pool("192.0.2.0/30")}, services{"a": has(v4, "192.0.2.9"), "b": has(v4, "192.0.2.1")}, nil, nil,
			map[string]string{"a": "192.0.2.2", "b": "192.0.2.1"}, nil, nil},
		"no load balancer": {pools{"p": pool("192.0.2.0/29")}, services{"a": has(Service{Families: "4"}, "192.0.2.1")}, nil, nil, nil, nil, nil},
		"another controller serves it": {pools{"p": pool("192.0.2.0/29")}, services{"a": svc(v4, func(s *Service) { s.Others = "203.0.113.9" }),
			"b": svc(v4, func(s *Service) { s.Others = "lb.example.com" })}, nil, nil, nil, nil, nil},
		"what another controller gave is not given again": {pools{"p": pool("192.0.2.4/31")}, services{"a": svc(v4, func(s *Service) { s.Others = "192.0.2.4 lb.example.com" }), "b": v4,
			"c": asks(v4, "192.0.2.4")}, nil, nil, map[string]string{"b": "192.0.2.5"}, []string{"c"}, nil},
		"nor what one of another class has": {pools{"p": pool("192.0.2.4/31")}, services{"a": {Families: "4", Others: "192.0.2.4"}, "b": v4}, nil, nil, map[string]string{"b": "192.0.2.5"}, nil, nil},
		"taken over from another product": {pools{"p": pool("192.0.2.0/29")}, services{"a": svc(created(v4, 2), func(s *Service) { s.Others = "192.0.2.1" }), "b": created(v4, 1)}, nil, nil,
			map[string]string{"a": "192.0.2.1", "b": "192.0.2.2"}, nil, nil},
		"a node has one of the addresses": {pools{"p": pool("192.0.2.0/29")}, services{"a": has(v4, "192.0.2.4"), "b": has(v4, "192.0.2.5"), "c": v4},
			[]Taken{{netip.MustParsePrefix("192.0.2.4/32"), "node n1"}}, nil, map[string]string{"b": "192.0.2.5"}, []string{"a", "c"}, map[string]string{"p": ReasonOverlaps}},
		"pods have them": {pools{"p": pool("10.1.2.0/24")}, services{"a": v4}, []Taken{{netip.MustParsePrefix("10.1.0.0/16"), "pods"}}, nil, nil, []string{"a"}, map[string]string{"p": ReasonOverlaps}},
		"an older pool has them": {pools{"old": with(pool("192.0.2.0/29"), func(p *Pool) { p.CreatedUnix, p.Services = 1, "none" }), "new": with(pool("192.0.2.6-192.0.2.9"), func(p *Pool) { p.CreatedUnix = 2 })},
			services{"a": v4, "b": has(v4, "192.0.2.8")}, nil, nil, map[string]string{"b": "192.0.2.8"}, []string{"a"}, map[string]string{"new": ReasonOverlaps}},
		"outside of what is allowed": {pools{"p": pool("192.0.2.0/29"), "q": pool("198.51.100.0/29")}, services{"a": v4}, nil, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
			map[string]string{"a": "198.51.100.1"}, nil, map[string]string{"p": ReasonOutside}},
		"a spec that can't be used gives nothing, and says so": {pools{"p": {Invalid: "why"}}, services{"a": v4}, nil, nil, nil, []string{"a"}, map[string]string{"p": ReasonInvalid}},
		"nor what could be read of it": {pools{"p": with(pool("192.0.2.0/29"), func(p *Pool) { p.Invalid = "why" })}, services{"a": v4, "b": asks(v4, "192.0.2.3")}, nil, nil,
			nil, []string{"a", "b"}, map[string]string{"p": ReasonInvalid}},
		"another pool gives instead": {pools{"p": {Invalid: "why"}, "q": pool("192.0.2.0/29")}, services{"a": v4}, nil, nil,
			map[string]string{"a": "192.0.2.1"}, nil, map[string]string{"p": ReasonInvalid}},
		"a spec that can't be used takes nothing away": {pools{"p": {Invalid: "why"}}, services{"a": has(dual, "192.0.2.1 2001:db8::1"), "b": has(v4, "192.0.2.2")}, nil, nil,
			map[string]string{"a": "192.0.2.1 2001:db8::1", "b": "192.0.2.2"}, nil, map[string]string{"p": ReasonInvalid}},
		"nor for the sake of a Service that asks": {pools{"p": with(pool("192.0.2.0/29"), func(p *Pool) { p.Invalid = "why" })}, services{"a": asks(has(v4, "192.0.2.1"), "192.0.2.2")}, nil, nil,
			map[string]string{"a": "192.0.2.1"}, []string{"a"}, map[string]string{"p": ReasonInvalid}},
		"but a node's address goes, and what a good pool no longer lets it have": {pools{"p": {Invalid: "why"}, "q": with(pool("198.51.100.0/29"), func(p *Pool) { p.Services = "app" })},
			services{"a": has(v4, "192.0.2.1"), "b": has(v4, "198.51.100.1")}, []Taken{{netip.MustParsePrefix("192.0.2.1/32"), "node n1"}}, nil,
			nil, []string{"a", "b"}, map[string]string{"p": ReasonInvalid}},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Pools: c.pools, Services: map[Key]Service{}, Taken: c.taken, External: c.external}
			for n, s := range c.services {
				in.Services[Key{"ns", n}] = s
			}
			for range 4 { // maps come in another order each time
				r := Allocate(in)
				given, reasons := map[string]string{}, map[string]string{}
				for k, a := range r.Given {
					given[k.Name] = Join(a)
				}
				for n, st := range r.Pools {
					if st.Reason != "" {
						reasons[n] = st.Reason
					}
				}
				var waiting []string
				for k := range r.Waiting {
					waiting = append(waiting, k.Name)
				}
				slices.Sort(waiting)
				if d := cmp.Diff(c.given, given, equateEmpty); d != "" {
					t.Error("given", d)
				}
				if d := cmp.Diff(c.waiting, waiting); d != "" {
					t.Error("waiting", d, r.Waiting)
				}
				if d := cmp.Diff(c.reasons, reasons, equateEmpty); d != "" {
					t.Error("reasons", d)
				}
			}
		})
	}
}

var equateEmpty = cmp.FilterValues(func(a, b map[string]string) bool { return len(a)+len(b) == 0 }, cmp.Ignore())

// TestAllocateNeverTwice: Services and pools come, change and go in any order;
// no address is with two Services, and who has one keeps it (invariant V9).
func TestAllocateNeverTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	in := Input{Pools: map[string]Pool{"p": {Blocks: blocksOf(t, "192.0.2.0/26", "2001:db8::/124")}}, Services: map[Key]Service{}}
	for step := range 400 {
		keys := slices.SortedFunc(maps.Keys(in.Services), Key.compare)
		if rng.IntN(3) == 0 && len(keys) > 0 {
			delete(in.Services, keys[rng.IntN(len(keys))])
		} else {
			s := Service{Balanced: true, CreatedUnix: int64(rng.IntN(10)), Families: []string{"4", "6", "46", "64"}[rng.IntN(4)]}
			if rng.IntN(3) == 0 {
				s.Request = fmt.Sprintf("192.0.2.%d", rng.IntN(70))
			}
			in.Services[Key{"ns", fmt.Sprintf("s%d", step)}] = s
		}
		r := Allocate(in)
		if again := Allocate(in); !maps.Equal(r.Given, again.Given) {
			t.Fatalf("step %d: %v, then %v of the same rows", step, r.Given, again.Given)
		}
		owner := map[netip.Addr]Key{}
		for k, a := range r.Given {
			for _, addr := range a.All() {
				if other, twice := owner[addr]; twice {
					t.Fatalf("step %d: %v is with %v and %v", step, addr, k, other)
				}
				owner[addr] = k
			}
			s := in.Services[k]
			for _, had := range Addrs(s.Ours) {
				if s.Request == "" && !slices.Contains(a.All(), had) {
					t.Fatalf("step %d: %v had %s and now has %s", step, k, s.Ours, Join(a))
				}
			}
			s.Ours = Join(a)
			in.Services[k] = s
		}
	}
}

func TestElect(t *testing.T) {
	key := Key{"ns", "a"}
	node := func(addr string) Node { return Node{Alive: true, Addrs: model.Addrs{}.Add(netip.MustParseAddr(addr))} }
	with := func(n Node, edit func(*Node)) Node { edit(&n); return n }
	base := func() Election {
		return Election{
			Pools:    map[string]Pool{"p": {Blocks: blocksOf(t, "192.0.2.128/25")}},
			Services: map[Key]Service{key: {Balanced: true, Ours: "192.0.2.200"}},
			Nodes:    map[string]Node{"n1": node("192.0.2.1"), "n2": node("192.0.2.2"), "n3": node("192.0.2.3")},
			Subnets:  []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
		}
	}
	only := func(in *Election, name string) { in.Nodes = map[string]Node{name: in.Nodes[name]} }
	for name, c := range map[string]struct {
		edit func(*Election)
		want string // node; "-": not even a subnet, "": the address is nobody's
	}{
		"one node": {func(in *Election) { only(in, "n2") }, "n2"},
		"a node that is not ready": {func(in *Election) {
			only(in, "n2")
			in.Nodes["n1"] = with(node("192.0.2.1"), func(n *Node) { n.Alive = false })
		}, "n2"},
		"a node that is excluded": {func(in *Election) {
			only(in, "n2")
			in.Nodes["n1"] = with(node("192.0.2.1"), func(n *Node) { n.Apart = true })
		}, "n2"},
		"a node of another subnet":      {func(in *Election) { only(in, "n2"); in.Nodes["n1"] = node("198.51.100.1") }, "n2"},
		"all nodes are known otherwise": {func(in *Election) { in.Nodes = map[string]Node{"n1": node("198.51.100.1")} }, "n1"},
		"those of the subnet are down": {func(in *Election) {
			in.Nodes = map[string]Node{"n1": node("198.51.100.1"), "n2": with(node("192.0.2.2"), func(n *Node) { n.Alive = false })}
		}, "none"},
		"selected": {func(in *Election) {
			in.Pools["p"] = Pool{Blocks: in.Pools["p"].Blocks, Nodes: "edge"}
			in.Nodes["n3"] = with(in.Nodes["n3"], func(n *Node) { n.Labels = "edge=" })
		}, "n3"},
		"only where an endpoint is": {func(in *Election) {
			in.Services[key] = Service{Balanced: true, Local: true, Ours: "192.0.2.200"}
			in.Local = map[Key]map[string]bool{key: {"n1": true}}
		}, "n1"},
		"no endpoint":        {func(in *Election) { in.Services[key] = Service{Balanced: true, Local: true, Ours: "192.0.2.200"} }, "none"},
		"not in a subnet":    {func(in *Election) { in.Subnets = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} }, "-"},
		"the pool is silent": {func(in *Election) { in.Pools["p"] = Pool{Blocks: in.Pools["p"].Blocks, Silent: true} }, ""},
		"the spec of the pool is broken": {func(in *Election) {
			only(in, "n2")
			in.Pools = map[string]Pool{"p": {Invalid: "why"}}
		}, "n2"},
		"broken, but its selector is known": {func(in *Election) {
			in.Pools = map[string]Pool{"p": {Invalid: "why", Nodes: "edge"}}
			in.Nodes["n3"] = with(in.Nodes["n3"], func(n *Node) { n.Labels = "edge=" })
		}, "n3"},
		"broken and silent": {func(in *Election) { in.Pools = map[string]Pool{"p": {Invalid: "why", Silent: true}} }, ""},
		"the broadcast address of the subnet": {func(in *Election) {
			in.Pools["p"] = Pool{Blocks: blocksOf(t, "192.0.2.128-192.0.2.255")}
			in.Services[key] = Service{Balanced: true, Ours: "192.0.2.255"}
		}, "none"},
		"the first address of the subnet": {func(in *Election) { in.Subnets = []netip.Prefix{netip.MustParsePrefix("192.0.2.201/29")} }, "none"},
		"of no pool":                      {func(in *Election) { in.Pools = nil }, ""},
		"a node has the address":          {func(in *Election) { in.Taken = []Taken{{netip.MustParsePrefix("192.0.2.200/32"), "node"}} }, ""},
		"the Service is none any longer":  {func(in *Election) { in.Services[key] = Service{Ours: "192.0.2.200"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			c.edit(&in)
			got := "" // nobody's
			for _, e := range Elect(in) {
				switch {
				case !e.Subnet.IsValid():
					got = "-"
				case e.Node == "":
					got = "none"
				default:
					got = e.Node
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestElectSpread: addresses are spread over nodes, and a node that goes moves
// only those that it had.
func TestElectSpread(t *testing.T) {
	nodes, anybody := []string{"n1", "n2", "n3", "n4"}, func(string) bool { return true }
	before, share := map[netip.Addr]string{}, map[string]int{}
	for i := range 200 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		before[a] = winner(a, nodes, anybody)
		share[before[a]]++
	}
	for _, n := range nodes {
		if share[n] < 30 || share[n] > 75 {
			t.Errorf("%s answers for %d of 200", n, share[n])
		}
	}
	left := []string{"n4", "n1", "n3"} // in another order
	for a, was := range before {
		if is := winner(a, left, anybody); was != "n2" && is != was {
			t.Errorf("%v moved from %s to %s", a, was, is)
		}
	}
}

// TestScale: 10,000 Services in a cluster of 5,000 nodes. It prints times; what it
// checks is that all get an address, and somebody answers for each.
func TestScale(t *testing.T) {
	in := Input{Pools: map[string]Pool{"p": {Blocks: blocksOf(t, "198.18.0.0/16", "2001:db8::/64")}}, Services: map[Key]Service{}}
	e := Election{Pools: in.Pools, Services: map[Key]Service{}, Nodes: map[string]Node{}, Subnets: []netip.Prefix{netip.MustParsePrefix("198.18.0.1/15"), netip.MustParsePrefix("2001:db8::1/64")}}
	for i := range 10_000 {
		in.Services[Key{"ns", fmt.Sprint("s", i)}] = Service{Balanced: true, Families: "46", Labels: "app=a,pod-template-hash=b"}
	}
	for i := range 5_000 {
		a := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
		e.Nodes[fmt.Sprint("n", i)] = Node{Alive: true, Addrs: model.Addrs{V4: a}}
		in.Taken = append(in.Taken, Taken{netip.PrefixFrom(a, 32), "node"})
	}
	e.Taken = in.Taken
	var given map[Key]model.Addrs
	for _, what := range []string{"all new", "nothing new"} {
		start := time.Now()
		given = Allocate(in).Given
		t.Logf("allocated in %v: %s", time.Since(start), what)
		for k, s := range in.Services {
			s.Ours = Join(given[k])
			in.Services[k] = s
		}
	}
	if len(given) != 10_000 {
		t.Fatalf("%d Services have addresses", len(given))
	}
	for i := range 500 {
		k := Key{"ns", fmt.Sprint("s", i)}
		e.Services[k] = in.Services[k]
	}
	start := time.Now()
	elected := Elect(e)
	t.Logf("elected for %d addresses in %v", len(elected), time.Since(start))
	for a, x := range elected {
		if x.Node == "" {
			t.Fatalf("nobody answers for %v", a)
		}
	}
	if len(elected) != 1_000 {
		t.Errorf("%d addresses", len(elected))
	}
}

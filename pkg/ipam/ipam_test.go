package ipam

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/google/go-cmp/cmp"
)

func prefixes(list ...string) (p model.Prefixes) {
	for _, s := range list {
		p = p.Add(netip.MustParsePrefix(s))
	}
	return p
}

func addrs(list ...string) (a model.Addrs) {
	for _, s := range list {
		a = a.Add(netip.MustParseAddr(s))
	}
	return a
}

func key(i int) model.PodKey { return model.PodKey{ContainerID: fmt.Sprint(i), IfName: "eth0"} }

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		prefix string
		want   uint64
	}{
		{"10.0.0.0/24", 253},
		{"10.0.0.0/16", 65533},
		{"10.0.0.0/30", 1},
		{"10.0.0.0/31", 0},
		{"10.0.0.1/32", 0},
		{"255.255.255.0/24", 253},
		{"255.255.255.252/30", 1},
		{"255.255.255.255/32", 0},
		{"0.0.0.0/0", 1<<32 - 3},
		{"fd00::/126", 2},
		{"fd00::/127", 0},
		{"fd00::/128", 0},
		{"fd00::/120", 254},
		{"fd00::/64", math.MaxUint64 - 1},
		{"fd00::/48", math.MaxUint64},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 254},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", 0},
	} {
		if got := Capacity(netip.MustParsePrefix(c.prefix)); got != c.want {
			t.Errorf("Capacity(%s) = %d, want %d", c.prefix, got, c.want)
		}
	}
}

// TestExhaust takes all that there is: every address once, none reserved, and
// then an error that names the prefix and the count.
func TestExhaust(t *testing.T) {
	for _, prefix := range []string{"10.1.2.0/24", "10.1.2.0/30", "10.1.2.0/31", "255.255.255.0/24", "fd00::/120", "fd00::/128",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"} {
		t.Run(prefix, func(t *testing.T) {
			p := netip.MustParsePrefix(prefix)
			a := New()
			a.SetPrefixes(prefixes(prefix))
			n := int(Capacity(p))
			seen := map[netip.Addr]bool{}
			for i := range n {
				got, err := a.Allocate(key(i))
				if err != nil {
					t.Fatal(err)
				}
				addr := got.All()[0]
				if seen[addr] || !p.Contains(addr) || addr == p.Addr() || addr == p.Addr().Next() || addr.Is4() && addr == lastAddr(p) {
					t.Fatalf("handed out %s", addr)
				}
				seen[addr] = true
			}
			_, err := a.Allocate(key(n))
			var full *ExhaustedError
			if !errors.As(err, &full) || *full != (ExhaustedError{Prefix: p, Capacity: uint64(n)}) {
				t.Fatalf("error %v", err)
			}
			want := fmt.Sprintf("pod CIDR %s: all %d addresses are in use", prefix, n)
			if err.Error() != want {
				t.Errorf("error %q, want %q", err, want)
			}
		})
	}
}

func TestNoPrefix(t *testing.T) {
	if _, err := New().Allocate(key(1)); !errors.Is(err, ErrNoPrefix) {
		t.Fatalf("error %v", err)
	}
}

// TestAllOrNothing: a family that is full must not cost an address of the other.
func TestAllOrNothing(t *testing.T) {
	a := New()
	a.SetPrefixes(prefixes("10.0.0.0/30", "fd00::/64"))
	if _, err := a.Allocate(key(1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := a.Allocate(key(2)); err == nil {
			t.Fatal("allocated from a full prefix")
		}
	}
	want := []Usage{
		{netip.MustParsePrefix("10.0.0.0/30"), 1, 1},
		{netip.MustParsePrefix("fd00::/64"), 1, math.MaxUint64 - 1},
	}
	if diff := cmp.Diff(want, a.Usage(), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
		t.Error(diff)
	}
}

func TestIdempotentPerOwner(t *testing.T) {
	a := New()
	a.SetPrefixes(prefixes("10.0.0.0/24", "fd00::/64"))
	first, _ := a.Allocate(key(1))
	again, _ := a.Allocate(key(1))
	if first != again || first != addrs("10.0.0.2", "fd00::2") {
		t.Errorf("first %v, again %v", first, again)
	}
	a.Release(key(1))
	a.Release(key(1))
	next, _ := a.Allocate(key(1))
	if next != addrs("10.0.0.3", "fd00::3") {
		t.Errorf("after release %v", next)
	}
}

// TestNoQuickReuse: a freed address comes back only after the whole round.
func TestNoQuickReuse(t *testing.T) {
	a := New()
	a.SetPrefixes(prefixes("10.0.0.0/28"))
	var freed netip.Addr
	for i := range 13 {
		got, err := a.Allocate(key(i))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && got.V4 == freed {
			t.Fatalf("%s came back after %d allocations", freed, i)
		}
		if i == 0 {
			freed = got.V4
		}
		a.Release(key(i))
	}
	if got, _ := a.Allocate(key(14)); got.V4 != freed {
		t.Errorf("after the round %s, want %s", got.V4, freed)
	}
}

func TestRestore(t *testing.T) {
	a := New()
	if err := a.Restore(key(1), addrs("10.0.0.7", "fd00::7")); err != nil {
		t.Fatal(err)
	}
	var conflict *ConflictError
	if err := a.Restore(key(2), addrs("10.0.0.8", "fd00::7")); !errors.As(err, &conflict) || conflict.Holder != key(1) {
		t.Fatalf("error %v", err)
	}
	a.SetPrefixes(prefixes("10.0.0.0/24", "fd00::/64"))
	if got, _ := a.Allocate(key(3)); got != addrs("10.0.0.8", "fd00::8") {
		t.Errorf("the search did not go on where it was: %v", got)
	}
}

// TestPrefixChange: a node that was created again has another pod CIDR.
func TestPrefixChange(t *testing.T) {
	a := New()
	a.SetPrefixes(prefixes("10.0.0.0/24"))
	old, _ := a.Allocate(key(1))
	a.SetPrefixes(prefixes("10.0.9.0/24"))
	if diff := cmp.Diff([]model.PodKey{key(1)}, a.Outside()); diff != "" {
		t.Error(diff)
	}
	if kept, _ := a.Allocate(key(1)); kept != old {
		t.Errorf("had %v, now %v", old, kept)
	}
	if got, _ := a.Allocate(key(2)); got != addrs("10.0.9.2") {
		t.Errorf("new address %v", got)
	}
	a.Release(key(1))
	if out := a.Outside(); len(out) != 0 {
		t.Errorf("outside: %v", out)
	}
}

// TestRandom runs random histories against a plain model: no address twice, none
// lost, owners keep theirs.
func TestRandom(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		choices := []model.Prefixes{prefixes("10.0.0.0/27"), prefixes("fd00::/123"), prefixes("10.0.0.0/28", "fd00::/64"), prefixes("10.0.0.16/28")}
		a, held := New(), map[model.PodKey]model.Addrs{}
		a.SetPrefixes(choices[0])
		for range 400 {
			step(t, rnd, a, held, choices)
		}
		for k := range held {
			a.Release(k)
		}
		if len(a.used) != 0 || len(a.owners) != 0 {
			t.Fatalf("seed %d: %d addresses leaked", seed, len(a.used))
		}
	}
}

func step(t *testing.T, rnd *rand.Rand, a *Allocator, held map[model.PodKey]model.Addrs, choices []model.Prefixes) {
	t.Helper()
	k := key(rnd.IntN(40))
	switch rnd.IntN(10) {
	case 0:
		a.SetPrefixes(choices[rnd.IntN(len(choices))])
	case 1, 2, 3, 4:
		a.Release(k)
		delete(held, k)
	default:
		got, err := a.Allocate(k)
		if err != nil {
			return
		}
		if had, ok := held[k]; ok && had != got {
			t.Fatalf("%v had %v, got %v", k, had, got)
		}
		held[k] = got
	}
	total, distinct := 0, map[netip.Addr]bool{}
	for _, h := range held {
		for _, addr := range h.All() {
			total, distinct[addr] = total+1, true
		}
	}
	if len(distinct) != total || len(a.used) != total {
		t.Fatalf("%d addresses held, %d distinct, %d in the allocator", total, len(distinct), len(a.used))
	}
}

// TestLargePrefixIsCheap: memory and time follow use, not size.
func TestLargePrefixIsCheap(t *testing.T) {
	a := New()
	a.SetPrefixes(prefixes("fd00::/64"))
	allocs := testing.AllocsPerRun(1000, func() {
		a.Allocate(key(1))
		a.Release(key(1))
	})
	if allocs > 30 || len(a.used) != 0 {
		t.Errorf("%.0f allocations per address", allocs)
	}
}

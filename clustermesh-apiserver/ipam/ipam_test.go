package ipam

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func share(list ...string) (p model.Prefixes) {
	for _, x := range prefixes(list...) {
		p = p.Add(x)
	}
	return p
}

func TestAssign(t *testing.T) {
	masks := Masks{V4: 24, V6: 64}
	type shares = map[string]model.Prefixes
	for name, c := range map[string]struct {
		pools   []netip.Prefix
		nodes   shares
		given   shares
		without []string
	}{
		"both families, in order of names": {prefixes("10.1.0.0/16", "fd00:1::/48"), shares{"b": {}, "a": {}},
			shares{"a": share("10.1.0.0/24", "fd00:1::/64"), "b": share("10.1.1.0/24", "fd00:1:0:1::/64")}, nil},
		"nodes keep what they have": {prefixes("10.1.0.0/16"), shares{"a": share("10.1.5.0/24")}, shares{}, nil},
		"holes are filled": {prefixes("10.1.0.0/16"), shares{"a": share("10.1.0.0/24"), "c": share("10.1.2.0/24"), "x": {}, "y": {}},
			shares{"x": share("10.1.1.0/24"), "y": share("10.1.3.0/24")}, nil},
		"a wider one of other origin is kept clear of": {prefixes("10.1.0.0/16"), shares{"a": share("10.1.0.0/22"), "x": {}},
			shares{"x": share("10.1.4.0/24")}, nil},
		"a narrower one too": {prefixes("10.1.0.0/16"), shares{"a": share("10.1.0.128/25"), "x": {}}, shares{"x": share("10.1.1.0/24")}, nil},
		"one outside of the pool is no matter": {prefixes("10.1.0.0/16"), shares{"a": share("10.9.0.0/24"), "x": {}},
			shares{"x": share("10.1.0.0/24")}, nil},
		"the next pool when the first is used up": {prefixes("10.1.0.0/24", "10.7.0.0/23"), shares{"x": {}, "y": {}, "z": {}},
			shares{"x": share("10.1.0.0/24"), "y": share("10.7.0.0/24"), "z": share("10.7.1.0/24")}, nil},
		"used up": {prefixes("10.1.0.0/23"), shares{"x": {}, "y": {}, "z": {}},
			shares{"x": share("10.1.0.0/24"), "y": share("10.1.1.0/24")}, []string{"z"}},
		"used up in one family gives nothing of the other": {prefixes("10.1.0.0/16", "fd00:1::/64"), shares{"x": {}, "y": {}},
			shares{"x": share("10.1.0.0/24", "fd00:1::/64")}, []string{"y"}},
		"a pool narrower than a share": {prefixes("10.1.0.0/25"), shares{"x": {}}, shares{}, []string{"x"}},
		"at the end of the address space": {prefixes("255.255.255.0/24"), shares{"x": {}, "y": {}},
			shares{"x": share("255.255.255.0/24")}, []string{"y"}},
	} {
		t.Run(name, func(t *testing.T) {
			given, without := Assign(c.pools, masks, c.nodes)
			eq := cmp.Comparer(func(a, b model.Prefixes) bool { return a == b })
			if d := cmp.Diff(c.given, given, eq); d != "" {
				t.Error("given", d)
			}
			if d := cmp.Diff(c.without, without); d != "" {
				t.Error("without", d)
			}
		})
	}
}

// Nodes come and go in any order; what is in use never overlaps.
func TestAssignNeverTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	nodes := map[string]model.Prefixes{}
	for step := range 500 {
		if rng.IntN(3) == 0 && len(nodes) > 0 {
			delete(nodes, slices.Sorted(maps.Keys(nodes))[rng.IntN(len(nodes))])
		} else {
			nodes[fmt.Sprintf("n%d", step)] = model.Prefixes{}
		}
		given, _ := Assign(prefixes("10.1.0.0/17", "fd00:1::/56"), Masks{V4: 24, V6: 64}, nodes)
		maps.Copy(nodes, given)
		var all []netip.Prefix
		for _, p := range nodes {
			all = append(all, p.All()...)
		}
		for i, p := range all {
			for _, q := range all[:i] {
				if p.Overlaps(q) {
					t.Fatalf("step %d: %v and %v are both in use", step, p, q)
				}
			}
		}
	}
}

package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// TestPlannerEqualsCompute walks through random changes, with few enough
// addresses and prefixes that rows often collide, and compares the patched plan
// with one computed from scratch after every step.
func TestPlannerEqualsCompute(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7473))
			in := base()
			in.Backend = []model.Encap{model.EncapAuto, model.EncapDirect, model.EncapVXLAN}[seed%3]
			trouble := []int{2, 40, 400}[seed/3%3] // one row in so many is out of order
			var planner Planner
			patched := 0
			follower := &Plan{}
			for step := range 120 {
				in = mutate(rnd, in, trouble)
				before := planner.r
				got, want := planner.Plan(in), Compute(in)
				if before == planner.r {
					patched++
				}
				follow(follower, got)
				got = &Plan{follower.Routes, got.Rules, follower.Neighbours, got.Tunnels, got.Sysctls, follower.Filter, got.PodMTU, got.Lines, got.Remotes, nil}
				if !reflect.DeepEqual(want, got) {
					t.Fatalf("step %d (-scratch +patched):\n%s", step, cmp.Diff(want, got, comparers...))
				}
			}
			if trouble == 400 && patched < 30 {
				t.Errorf("only %d of 120 steps were patched", patched)
			}
		})
	}
}

// follow does what a reader of patches does.
func follow(f, p *Plan) {
	if p.Patch == nil {
		f.Routes, f.Neighbours, f.Filter = maps.Clone(p.Routes), maps.Clone(p.Neighbours), maps.Clone(p.Filter)
		return
	}
	apply(f.Routes, p.Patch.Routes)
	apply(f.Neighbours, p.Patch.Neighbours)
	apply(f.Filter, p.Patch.Filter)
}

func apply[K, V comparable](rows map[K]V, c Changes[K, V]) {
	maps.Copy(rows, c.Set)
	for _, k := range c.Del {
		delete(rows, k)
	}
}

var comparers = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b model.Prefixes) bool { return a == b }),
}

// mutate returns a changed copy of in.
func mutate(rnd *rand.Rand, in Input, trouble int) Input {
	in.Nodes, in.Pods, in.Mesh = maps.Clone(in.Nodes), maps.Clone(in.Pods), maps.Clone(in.Mesh)
	for range 1 + rnd.IntN(3) {
		switch k := rnd.IntN(40); {
		case k < 20:
			n := randomNode(rnd, trouble)
			in.Nodes[n.Key] = n
		case k < 28:
			delete(in.Nodes, randomNode(rnd, trouble).Key)
		case k < 34:
			p := randomPod(rnd, trouble)
			in.Pods[p.Key] = p
		case k < 38:
			delete(in.Pods, randomPod(rnd, trouble).Key)
		case rnd.IntN(trouble) == 0:
			in.Mesh["west"] = [][]netip.Prefix{{pfx("10.2.0.0/16"), pfx("fd00:2::/48")}, {pfx("10.2.0.0/17")}, nil}[rnd.IntN(3)]
		}
	}
	return in
}

func randomNode(rnd *rand.Rand, trouble int) model.Node {
	i := rnd.IntN(60)
	cluster, net := "west", 2
	if rnd.IntN(3) == 0 {
		cluster, net = "east", 1
	}
	n := model.Node{Key: model.NodeKey{Cluster: cluster, Name: fmt.Sprint("n", i)}}
	if rnd.IntN(trouble) == 0 {
		i = rnd.IntN(60) // somebody else's prefix and address
	}
	n.Internal = model.Addrs{V4: ip(fmt.Sprintf("192.0.%d.%d", 2+rnd.IntN(2), 10+100*(net-1)+i))}
	if rnd.IntN(2) == 0 {
		n.Internal.V6 = ip(fmt.Sprintf("2001:db8::%d:%d", net, i))
	}
	n.PodCIDRs = model.Prefixes{V4: pfx(fmt.Sprintf("10.%d.%d.0/24", net, 10+i))}
	switch rnd.IntN(8) {
	case 0:
		n.PodCIDRs.V4 = netip.Prefix{}
	case 1, 2, 3:
		n.PodCIDRs.V6 = pfx(fmt.Sprintf("fd00:%d:0:%d::/64", net, 10+i))
	case 4:
		n.Encap = model.EncapDirect
	case 6:
		n.PodCIDRs.V4 = pfx(fmt.Sprintf("10.%d.%d.0/26", net, 10+i))
	case 5:
		n.VXLANPort = 4789
	}
	if rnd.IntN(trouble) == 0 {
		n.PodCIDRs.V4 = pfx([]string{"10.2.0.0/16", "10.7.0.0/24", "10.2.8.0/21"}[rnd.IntN(3)])
	}
	return n
}

func randomPod(rnd *rand.Rand, trouble int) model.Pod {
	i := rnd.IntN(8)
	k := model.PodKey{ContainerID: fmt.Sprint("c", i), IfName: "eth0"}
	if rnd.IntN(trouble) == 0 {
		i = rnd.IntN(8)
	}
	return model.Pod{Key: k, Namespace: "default", Name: k.ContainerID, HostIf: "cm" + k.ContainerID, MAC: model.MAC{2, 0, 0, 0, 0, byte(i)},
		IPs: model.Addrs{V4: ip(fmt.Sprintf("10.1.3.%d", 10+i)), V6: ip(fmt.Sprintf("fd00:1:0:3::%d", 10+i))}}
}

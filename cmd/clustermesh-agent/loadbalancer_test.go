package main

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// newTestBalancers is the part of an agent of node n1 whose kernel is not there.
func newTestBalancers(t *testing.T) *balancers {
	cfg := config.Default()
	cfg.Cluster = config.Cluster{Name: "us", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	log := slog.New(slog.DiscardHandler)
	a := &agent{opt: options{node: "n1"}, cfg: cfg, log: log, board: status.NewBoard(time.Now), nodes: state.New[model.NodeKey, model.Node](), pods: state.New[model.PodKey, model.Pod]()}
	a.mesh = newMeshPrefixes(log, cfg.Cluster, filepath.Join(t.TempDir(), "mesh.json"), a.nodes)
	a.world = newWorld(a)
	b := newBalancers(a)
	b.slices = state.New[model.SliceKey, string]()
	b.slices.Expect(kube.Source)
	a.nodes.Replace(kube.Source, map[model.NodeKey]model.Node{a.world.local: {Key: a.world.local, Internal: model.Addrs{V4: netip.MustParseAddr("192.0.2.1")}}})
	a.world.underlay = plan.Underlay{Addrs: []plan.LocalAddr{{Prefix: netip.MustParsePrefix("192.0.2.1/24"), Dev: "eth0"}}}
	a.world.publish(&plan.Plan{Routes: map[plan.RouteKey]plan.Route{{Dst: netip.MustParsePrefix("10.1.0.7/32")}: {Kind: plan.Unicast}}}, true, nil)
	return b
}

// rows is how many rows there are for the addresses.
func (b *balancers) rows() int {
	return b.proxies.Len() + b.world.out.routes.Len() + b.world.out.filter.Len() + b.world.out.sysctls.Len() - 1 // the plan's own
}

// TestBalancersFollow: nothing is planned, and nothing that an agent before us
// left may go, before every source has reported; then rows come and go with what
// Kubernetes says, and the plan's own stay (invariants R2, V9).
func TestBalancersFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBalancers(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.follow(ctx) }()
		settle := func() { time.Sleep(3 * time.Second); synctest.Wait() }
		addr := netip.MustParseAddr("192.0.2.200")
		left, pod := plan.RouteKey{Dst: netip.PrefixFrom(addr, 32)}, plan.RouteKey{Dst: netip.MustParsePrefix("10.1.0.8/32")}
		element := plan.FilterKey{Set: plan.Announced4, Addr: addr}

		key := lbpool.Key{Namespace: "ns", Name: "web"}
		web := lbpool.Service{Balanced: true, Families: "4", Ours: addr.String()}
		blocks, err := lbpool.ParseSpec([]string{"192.0.2.128/25"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		steps := []func(){
			func() { b.pools.Replace(kube.Source, map[string]lbpool.Pool{"p": {Blocks: blocks}}) },
			func() { b.services.Replace(kube.Source, map[lbpool.Key]lbpool.Service{key: web}) },
			func() { b.slices.Replace(kube.Source, nil) },
			func() { b.hosts.Replace(kube.Source, map[string]lbpool.Node{"n1": {Alive: true}}) },
		}
		for _, step := range steps {
			settle()
			if b.rows() != 0 || b.settled() || b.route(left) || b.filter(element) || !b.route(pod) {
				t.Fatalf("%d rows, settled %v, before every source has reported", b.rows(), b.settled())
			}
			step()
		}
		settle()
		check := func(what string, want int) {
			t.Helper()
			settle()
			if got := b.rows(); got != want {
				t.Errorf("%s: %d rows, want %d", what, got, want)
			}
		}
		check("all is known", 4)
		if !b.settled() || !b.route(left) || !b.filter(element) {
			t.Error("what nobody wants can't go")
		}
		if lines := b.board.Lines(); len(lines) != 1 || lines[0].Component != "announce" || lines[0].Message != "this node answers for 192.0.2.200" {
			t.Errorf("status says %+v", lines)
		}

		local := web
		local.Local = true
		b.services.Update(kube.Source, map[lbpool.Key]lbpool.Service{key: local}, nil)
		check("policy Local, no endpoint", 0)
		slice := wire.Slice{Service: "web", Endpoints: []wire.SliceEndpoint{{Addr: netip.MustParseAddr("10.1.0.7"), Node: "n1", Ready: true}}}
		at := model.SliceKey{Cluster: "us", Namespace: "ns", Name: "web-1"}
		b.slices.Update(kube.Source, map[model.SliceKey]string{at: string(slice.Encode())}, nil)
		check("an endpoint here", 4)
		b.slices.Update(kube.Source, nil, []model.SliceKey{at})
		check("the endpoint is gone", 0)
		b.services.Update(kube.Source, map[lbpool.Key]lbpool.Service{key: web}, nil)
		check("policy Cluster", 4)
		b.hosts.Update(kube.Source, map[string]lbpool.Node{"n1": {}}, nil)
		check("this node is not ready", 0)
		b.hosts.Update(kube.Source, map[string]lbpool.Node{"n1": {Alive: true}}, nil)
		check("it is again", 4)
		other := model.NodeKey{Cluster: "them", Name: "n9"}
		b.world.nodes.Update("peer", map[model.NodeKey]model.Node{other: {Key: other, Internal: model.Addrs{V4: addr}}}, nil)
		b.world.change.wake()
		check("a node of another cluster has the address", 0)
		b.world.nodes.Update("peer", nil, []model.NodeKey{other})
		b.world.change.wake()
		check("it has gone", 4)
		b.pools.Update(kube.Source, nil, []string{"p"})
		check("the pool is gone", 0)
		if left := slices.Collect(maps.Keys(b.world.out.routes.Rows())); len(left) != 1 {
			t.Errorf("the plan's own routes are %v", left)
		}
		cancel()
		<-done
	})
}

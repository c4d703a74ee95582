package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// balancers is the node's part in answering for addresses of load balancers: it
// elects, with all others and from the same rows, who answers for which, and has
// the kernel do so for its own. What that takes beside proxy entries goes into
// the tables of the plan, under a source of its own.
type balancers struct {
	log    *slog.Logger
	board  *status.Board
	client *kube.Client
	cfg    config.Config
	world  *world

	pools    *state.Table[string, lbpool.Pool]
	services *state.Table[lbpool.Key, lbpool.Service]
	hosts    *state.Table[string, lbpool.Node]
	slices   *state.Table[model.SliceKey, string]
	follows  bool // Services and slices: nobody else does
	proxies  *state.Table[plan.NeighbourKey, plan.Proxy]
	teller   *gratuitous.Teller
	loop     *reconcile.Loop[plan.NeighbourKey, plan.Proxy]
	wake     *fanout // deletions may go on

	mu    sync.Mutex
	known bool // guarded by mu: whom this node answers for; stays true
}

// announceSource is the name under which rows are claimed.
const announceSource = "announce"

// proxiesEvery is how often the proxy entries are listed: the kernel does not
// tell when somebody deletes one.
const proxiesEvery = 10 * time.Second

func newBalancers(a *agent) *balancers {
	b := &balancers{log: a.log, board: a.board, client: a.client, cfg: a.cfg, world: a.world, pools: state.New[string, lbpool.Pool](), services: state.New[lbpool.Key, lbpool.Service](),
		hosts: state.New[string, lbpool.Node](), proxies: state.New[plan.NeighbourKey, plan.Proxy](), wake: &fanout{}}
	b.pools.Expect(kube.Source)
	b.services.Expect(kube.Source)
	b.hosts.Expect(kube.Source)
	return b
}

// start makes the loop of the proxy entries. services follows the Services and
// their slices, if these are ours; loops hold the rest of what is planned here.
func (b *balancers) start(opt reconcile.Options, services *services, loops *loops) {
	b.follows = !services.ours()
	b.slices = services.slices
	if b.follows {
		b.slices = state.New[model.SliceKey, string]()
		b.slices.Expect(kube.Source)
	}
	b.teller = gratuitous.NewTeller(b.log, nl.Space{})
	orphan := func() reconcile.Orphan[plan.NeighbourKey] {
		settled := b.settled()
		return func(plan.NeighbourKey) bool { return settled }
	}
	opt.Resync = proxiesEvery
	proxies := route.NewProxies(nl.Space{})
	b.loop = reconcile.NewTableLoop("proxies", takeover{proxies, proxies, b.teller, loops.announced}, b.proxies, orphan, opt, b.wake.subscribe())
}

// settled tells whether it is known whom this node answers for. Before that,
// what an agent before us left must stay.
func (b *balancers) settled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.known
}

// route and filter tell whether rows of the plan's tables that nobody wants may
// go, as far as they may be ours.
func (b *balancers) route(k plan.RouteKey) bool {
	return b.settled() || !k.Announcing(b.world.mesh.byCluster())
}

func (b *balancers) filter(k plan.FilterKey) bool { return b.settled() || !k.Announcing() }

// run follows, elects and programs until ctx ends.
func (b *balancers) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.client.RunPools(ctx, b.log, b.pools) })
	if b.follows {
		g.Go(func() error { return b.client.RunBalanced(ctx, b.log, b.services) })
		g.Go(func() error { return b.client.RunSlices(ctx, b.log, b.cfg.Cluster.Name, b.slices) })
	}
	g.Go(func() error { return b.loop.Run(ctx) })
	g.Go(func() error { return b.teller.Run(ctx) })
	g.Go(func() error { return b.follow(ctx) })
	return g.Wait()
}

// How soon there is an election after a change: of what it is about, and of the
// plan, which changes with every pod and seldom matters.
const (
	electSoon  = 50 * time.Millisecond
	electLater = time.Second
)

// follow elects after every change that can matter.
func (b *balancers) follow(ctx context.Context) error {
	if err := b.world.waitFirst(ctx); err != nil {
		return err
	}
	pools, services, hosts, world := b.pools.Subscribe(), b.services.Subscribe(), b.hosts.Subscribe(), b.world.change.subscribe()
	slices, locals, lines := b.slices.Follow(), lbpool.NewLocals(), status.Shown{}
	var soon, later <-chan time.Time
	for {
		urgent := true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pools:
		case <-services:
		case <-hosts:
		case <-slices.C:
			set, del, _ := slices.Take()
			urgent = locals.Change(set, del) || !b.settled()
		case <-world:
			if urgent = false; later == nil {
				later = time.After(electLater)
			}
		case <-later:
			later = nil
		case <-soon:
			soon, urgent = nil, false
			b.elect(locals, &lines)
		}
		if urgent && soon == nil {
			soon = time.After(electSoon)
		}
	}
}

// elect does so if all is known that it takes.
func (b *balancers) elect(locals *lbpool.Locals, lines *status.Shown) {
	pools, poolsKnown := b.pools.Snapshot()
	services, servicesKnown := b.services.Snapshot()
	hosts, hostsKnown := b.hosts.Snapshot()
	nodes := b.world.nodes.Rows()
	underlay := b.world.currentUnderlay()
	node, here := nodes[b.world.local]
	p, _ := b.world.current()
	if !poolsKnown || !servicesKnown || !hostsKnown || !b.slices.Synced() || !here || len(underlay.Addrs) == 0 || p == nil {
		return
	}
	locals.SetServices(services, b.slices.Rows)
	elected := lbpool.Elect(lbpool.Election{Pools: pools, Services: services, Nodes: hosts, Local: locals.Nodes(), Taken: b.taken(nodes), Subnets: underlay.Subnets()})
	out := plan.Announce(plan.AnnounceInput{Node: node.Key.Name, Elected: elected, Underlay: underlay, Sources: node.Internal, MTU: p.PodMTU})
	b.publish(out)
	lines.Show(b.board, b.log, out.Lines)
}

// taken is what belongs to others, whatever a Service's status says.
func (b *balancers) taken(nodes map[model.NodeKey]model.Node) []lbpool.Taken {
	var out []lbpool.Taken
	for _, p := range b.cfg.Cluster.ServiceCIDRs {
		out = append(out, lbpool.Taken{Prefix: p})
	}
	for _, prefixes := range b.world.mesh.byCluster() {
		for _, p := range prefixes {
			out = append(out, lbpool.Taken{Prefix: p})
		}
	}
	for _, n := range nodes {
		for _, a := range append(n.Internal.All(), n.External.All()...) {
			out = append(out, lbpool.Taken{Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	return out
}

// publish makes the rows those of a.
func (b *balancers) publish(a plan.Announced) {
	w := b.world.out
	w.filter.Replace(announceSource, a.Filter)
	w.sysctls.Replace(announceSource, a.Sysctls)
	w.routes.Replace(announceSource, a.Routes)
	b.proxies.Replace(announceSource, a.Proxies)
	b.mu.Lock()
	first := !b.known
	b.known = true
	b.mu.Unlock()
	if first {
		b.wake.wake()
		b.world.grown.wake()
	}
}

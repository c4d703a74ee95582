package main

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
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
	takeover *takeover
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
// their slices, if these are ours.
func (b *balancers) start(opt reconcile.Options, services *services) {
	b.follows = !services.ours()
	b.slices = services.slices
	if b.follows {
		b.slices = state.New[model.SliceKey, string]()
		b.slices.Expect(kube.Source)
	}
	b.takeover = newTakeover(b.log, route.NewProxies(nl.Space{}))
	orphan := func() reconcile.Orphan[plan.NeighbourKey] {
		settled := b.settled()
		return func(plan.NeighbourKey) bool { return settled }
	}
	opt.Resync = proxiesEvery
	b.loop = reconcile.NewTableLoop("proxies", b.takeover, b.proxies, orphan, opt, b.wake.subscribe())
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
	g.Go(func() error { return b.takeover.run(ctx) })
	g.Go(func() error { return b.follow(ctx) })
	return g.Wait()
}

// follow elects after every change that can matter.
func (b *balancers) follow(ctx context.Context) error {
	if err := b.world.waitFirst(ctx); err != nil {
		return err
	}
	pools, services, hosts, world := b.pools.Subscribe(), b.services.Subscribe(), b.hosts.Subscribe(), b.world.change.subscribe()
	slices, local, lines := b.slices.Follow(), newLocalEndpoints(), shown{}
	var later <-chan time.Time
	for {
		elect := true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pools:
		case <-services:
		case <-hosts:
		case <-world: // of every pod, too; what matters here is in no hurry
			if elect = false; later == nil {
				later = time.After(time.Second)
			}
		case <-later:
			later = nil
		case <-slices.C:
			set, del, _ := slices.Take()
			elect = local.change(set, del) || !b.settled()
		}
		if elect {
			b.elect(local, &lines)
		}
	}
}

// elect does so if all is known that it takes.
func (b *balancers) elect(local *localEndpoints, lines *shown) {
	pools, poolsKnown := b.pools.Snapshot()
	services, servicesKnown := b.services.Snapshot()
	hosts, hostsKnown := b.hosts.Snapshot()
	nodes, _ := b.world.nodes.Snapshot()
	underlay := b.world.currentUnderlay()
	node, here := nodes[b.world.local]
	if !poolsKnown || !servicesKnown || !hostsKnown || !b.slices.Synced() || !here || len(underlay.Addrs) == 0 {
		return
	}
	local.of(services, b.slices.Rows)
	in := lbpool.Election{Pools: pools, Services: services, Nodes: hosts, Local: local.nodes(), Taken: b.taken(nodes)}
	for _, l := range underlay.Addrs {
		if !l.Prefix.IsSingleIP() {
			in.Subnets = append(in.Subnets, l.Prefix)
		}
	}
	p, _ := b.world.current()
	out := plan.Announce(plan.AnnounceInput{Node: node.Key.Name, Elected: lbpool.Elect(in), Underlay: underlay, Sources: node.Internal, MTU: p.PodMTU})
	b.publish(out)
	lines.show(b.board, b.log, out.Lines)
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

// localEndpoints are the nodes with ready endpoints, of Services whose
// externalTrafficPolicy is Local. Others are not kept.
type localEndpoints struct {
	wanted map[lbpool.Key]bool
	byRow  map[model.SliceKey]localSlice
}

type localSlice struct {
	service lbpool.Key
	nodes   string // separated by spaces
}

func newLocalEndpoints() *localEndpoints {
	return &localEndpoints{wanted: map[lbpool.Key]bool{}, byRow: map[model.SliceKey]localSlice{}}
}

// of says which Services there are; all rows are looked at if one is new.
func (l *localEndpoints) of(services map[lbpool.Key]lbpool.Service, rows func() map[model.SliceKey]string) {
	before := l.wanted
	l.wanted = map[lbpool.Key]bool{}
	more := false
	for key, s := range services {
		if s.Local && s.Ours != "" {
			l.wanted[key] = true
			more = more || !before[key]
		}
	}
	if more {
		l.byRow = map[model.SliceKey]localSlice{}
		l.change(rows(), nil)
	}
}

// change takes in slices and tells whether that matters.
func (l *localEndpoints) change(set map[model.SliceKey]string, del []model.SliceKey) (matters bool) {
	for _, k := range del {
		_, had := l.byRow[k]
		matters = matters || had
		delete(l.byRow, k)
	}
	if len(l.wanted) == 0 {
		return matters
	}
	for k, value := range set {
		row, err := wire.DecodeSlice([]byte(value))
		if err != nil {
			continue // our own encoding: can't be
		}
		next, old := localSlice{service: lbpool.Key{Namespace: k.Namespace, Name: row.Service}}, l.byRow[k]
		if !l.wanted[next.service] {
			continue
		}
		seen := map[string]bool{}
		for _, e := range row.Endpoints {
			if e.Ready && !seen[e.Node] {
				seen[e.Node] = true
				next.nodes += e.Node + " "
			}
		}
		l.byRow[k] = next
		matters = matters || next != old
	}
	return matters
}

func (l *localEndpoints) nodes() map[lbpool.Key]map[string]bool {
	out := map[lbpool.Key]map[string]bool{}
	for _, s := range l.byRow {
		if out[s.service] == nil {
			out[s.service] = map[string]bool{}
		}
		for n := range strings.FieldsSeq(s.nodes) {
			out[s.service][n] = true
		}
	}
	return out
}

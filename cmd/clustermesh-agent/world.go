package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// world turns the tables into a plan whenever one of them changes, and its rows
// into tables that the loops follow; nobody computes a plan twice.
type world struct {
	log    *slog.Logger
	board  *status.Board
	local  model.NodeKey
	base   plan.Input // what configuration fixes
	nodes  *state.Table[model.NodeKey, model.Node]
	pods   *state.Table[model.PodKey, model.Pod]
	mesh   *meshPrefixes
	cidrs  func(model.Prefixes)
	wake   chan struct{}
	first  chan struct{} // closed once there is a plan
	grown  *fanout       // wakes the loops: rows that were spared may go
	change *fanout       // wakes who wants to know of a new plan
	out    outputs

	computing sync.Mutex   // held over a whole computation
	planner   plan.Planner // guarded by computing
	lines     status.Shown // guarded by computing: what the last plan put on the board
	planned   versions     // guarded by computing: what the last plan was made from

	mu        sync.Mutex
	plan      *plan.Plan      // guarded by mu; its rows are the planner's
	settled   bool            // guarded by mu; stays true: see publish
	missing   plan.Unreported // guarded by mu: of peers
	underlay  plan.Underlay   // guarded by mu
	underlays uint64          // guarded by mu: changes of it
}

func newWorld(a *agent) *world {
	return &world{
		log: a.log, board: a.board, nodes: a.nodes, pods: a.pods, mesh: a.mesh,
		local: model.NodeKey{Cluster: a.cfg.Cluster.Name, Name: a.opt.node},
		base: plan.Input{
			Local:   model.NodeKey{Cluster: a.cfg.Cluster.Name, Name: a.opt.node},
			Backend: a.cfg.Routing.Backend, Masquerade: a.cfg.Masquerade.Enabled, MTU: a.cfg.Routing.MTU,
			Services: a.cfg.Services.KubeProxy == config.KubeProxyReplace, ServiceCIDRs: a.cfg.Cluster.ServiceCIDRs,
		},
		cidrs: func(p model.Prefixes) { a.pod.SetPodCIDRs(p) },
		wake:  make(chan struct{}, 1), first: make(chan struct{}), grown: &fanout{}, change: &fanout{}, out: newOutputs(),
	}
}

// outputs are the rows of the newest plan.
type outputs struct {
	routes     *state.Table[plan.RouteKey, plan.Route]
	rules      *state.Table[plan.RuleKey, plan.Rule]
	neighbours *state.Table[plan.NeighbourKey, plan.Neighbour]
	tunnels    *state.Table[string, plan.Tunnel]
	sysctls    *state.Table[string, string]
	filter     *state.Table[plan.FilterKey, plan.FilterRow]
}

func newOutputs() outputs {
	return outputs{state.New[plan.RouteKey, plan.Route](), state.New[plan.RuleKey, plan.Rule](), state.New[plan.NeighbourKey, plan.Neighbour](),
		state.New[string, plan.Tunnel](), state.New[string, string](), state.New[plan.FilterKey, plan.FilterRow]()}
}

// put makes the rows those of p.
func (o outputs) put(p *plan.Plan) {
	const source = "plan"
	if p.Patch == nil {
		o.rules.Replace(source, p.Rules)
		o.tunnels.Replace(source, p.Tunnels)
		o.sysctls.Replace(source, p.Sysctls)
		o.filter.Replace(source, maps.Clone(p.Filter)) // the planner changes its own
		o.neighbours.Replace(source, maps.Clone(p.Neighbours))
		o.routes.Replace(source, maps.Clone(p.Routes))
		return
	}
	o.filter.Update(source, p.Patch.Filter.Set, p.Patch.Filter.Del)
	o.neighbours.Update(source, p.Patch.Neighbours.Set, p.Patch.Neighbours.Del)
	o.routes.Update(source, p.Patch.Routes.Set, p.Patch.Routes.Del)
}

// run recomputes the plan after every change until ctx ends.
func (w *world) run(ctx context.Context) error {
	nodes, pods, mesh := w.nodes.Subscribe(), w.pods.Subscribe(), w.mesh.table.Subscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes:
		case <-pods:
		case <-mesh:
		case <-w.wake:
		}
		_ = w.refresh() // what is missing wakes us when it comes
	}
}

// restore learns from the kernel what the agent before left there that the plan
// must not narrow before every source has reported.
func (w *world) restore() error {
	var space nl.Space
	held, err := nft.Held(space)
	w.base.Held = held
	return err
}

// refresh computes a plan of the tables as they are now. There is none until
// this node, its addresses and the mesh's prefixes are known: nothing touches
// the kernel before that.
func (w *world) refresh() error {
	w.computing.Lock()
	defer w.computing.Unlock()
	now := w.versions() // before the tables are read: what changes meanwhile counts again
	if now == w.planned {
		return nil // both who changes a pod and who follows the pods ask for this
	}
	in, settled, missing := w.input()
	local, known := in.Nodes[w.local]
	switch {
	case !known:
		return errors.New("the Node object of this node is not known")
	case len(in.Underlay.Addrs) == 0:
		return errors.New("the addresses of this node are not known")
	case !w.mesh.known():
		return errors.New("the prefixes of the mesh are not known")
	}
	w.cidrs(local.PodCIDRs)
	p := w.planner.Plan(in)
	w.publish(p, settled, missing)
	w.lines.Show(w.board, w.log, p.Lines)
	w.change.wake()
	w.planned = now
	return nil
}

// versions are those of all that a plan is made from.
type versions struct {
	nodes, pods, mesh, underlay uint64
	listed                      bool
}

func (w *world) versions() versions {
	w.mu.Lock()
	defer w.mu.Unlock()
	return versions{w.nodes.Version(), w.pods.Version(), w.mesh.table.Version(), w.underlays, w.mesh.complete()}
}

// input is the input of a plan, whether our own cluster and this node have been
// learnt in full, and what peers are still missing.
func (w *world) input() (in plan.Input, settled bool, missing plan.Unreported) {
	in = w.base
	peersListed := w.mesh.complete() // asked first: what it promises then holds for the tables below
	sources := w.nodes.Sources()
	nodes, _ := w.nodes.Snapshot()
	pods, podsSynced := w.pods.Snapshot()
	in.Nodes, in.Pods, in.Mesh = nodes, pods, w.mesh.byCluster()
	for source, reported := range sources {
		if name, peer := strings.CutPrefix(source, peerSource("")); peer && !reported {
			missing = append(missing, in.Mesh[name]...)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	in.Underlay = w.underlay
	settled = w.settled || peersListed && sources[kube.Source] && podsSynced
	if settled && len(missing) == 0 {
		in.Held = plan.Rules{}
	}
	return in, settled, missing
}

// publish makes p the plan. Once every source that was there at the start has
// reported, all that the kernel holds is accounted for; a source that joins
// later has no orphans there, so it does not hold up deletions again.
func (w *world) publish(p *plan.Plan, settled bool, missing plan.Unreported) {
	w.mu.Lock()
	if w.plan == nil {
		close(w.first)
	}
	grown := settled && !w.settled || len(missing) < len(w.missing)
	w.plan, w.settled, w.missing = p, settled, missing
	w.mu.Unlock()
	w.out.put(p)
	if grown {
		w.grown.wake()
	}
}

// orphans tells in every pass of a loop which of its rows that nobody wants may
// go: none before our own side is known, then those that spare lets go.
func orphans[K comparable](w *world, spare func(plan.Unreported, K) bool) func() reconcile.Orphan[K] {
	return func() reconcile.Orphan[K] {
		w.mu.Lock()
		defer w.mu.Unlock()
		settled, missing := w.settled, w.missing
		return func(k K) bool { return settled && spare(missing, k) }
	}
}

// current is the newest plan, nil before the first, and whether all of the mesh
// has reported.
func (w *world) current() (*plan.Plan, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.plan, w.settled && len(w.missing) == 0
}

func (w *world) waitFirst(ctx context.Context) error {
	select {
	case <-w.first:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchUnderlay keeps the node's own addresses and MTU current.
func (w *world) watchUnderlay(ctx context.Context) error {
	var space nl.Space
	again := make(chan struct{}, 1)
	poke := func() {
		select {
		case again <- struct{}{}:
		default:
		}
	}
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		for ctx.Err() == nil {
			if err := link.WatchUnderlay(ctx, space, poke); err != nil && ctx.Err() == nil {
				w.log.Warn("watch of addresses ended", "error", err)
				pause(ctx, time.Second)
			}
		}
	})
	nodes := w.nodes.Subscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-nodes:
		case <-again:
		}
		if err := w.readUnderlay(ctx, space); err != nil {
			pause(ctx, time.Second) // a dump that was disturbed, say: nobody wakes us for that
			poke()
		}
	}
}

// readUnderlay wakes the planning if anything is not as it was.
func (w *world) readUnderlay(ctx context.Context, space nl.Space) error {
	local, ok := w.nodes.Get(w.local)
	if !ok {
		return nil
	}
	key := status.Key{Component: "underlay"}
	u, err := link.ReadUnderlay(ctx, space, local.Internal)
	if err != nil {
		w.board.Set(key, status.Degraded, err.Error(), "it is retried; see the agent's log if it stays")
		return err
	}
	w.board.Clear(key)
	w.mu.Lock()
	same := w.underlay.MTU == u.MTU && slices.Equal(w.underlay.Addrs, u.Addrs)
	w.underlay = u
	if !same {
		w.underlays++
	}
	w.mu.Unlock()
	if same {
		return nil
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

func (w *world) currentUnderlay() plan.Underlay {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.underlay
}

// sync waits until the kernel holds what the tables say now of a pod. What is
// wrong with others does not hold it up.
func (a *agent) sync(ctx context.Context, pod model.Pod) error {
	if err := a.world.refresh(); err != nil {
		return err
	}
	return a.loops.syncPod(ctx, pod)
}

// podMTU is asked at every ADD: pod devices get the underlay's MTU, their
// default routes what is left of it inside the tunnel.
func (a *agent) podMTU() podnet.MTU {
	p, _ := a.world.current()
	if p == nil {
		return podnet.MTU{}
	}
	return podnet.MTU{Device: max(a.world.currentUnderlay().MTU, p.PodMTU), Route: p.PodMTU}
}

// nodeOptions is what our nodes' rows say beside their Node objects.
func (a *agent) nodeOptions() kube.NodeOptions {
	return kube.NodeOptions{Cluster: a.cfg.Cluster.Name, Encap: a.cfg.Routing.Backend, VXLANPort: plan.DefaultVXLANPort, VNI: plan.DefaultVNI}
}

// fanout wakes several readers.
type fanout struct {
	mu   sync.Mutex
	subs []chan struct{} // guarded by mu
}

func (f *fanout) subscribe() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{}, 1)
	f.subs = append(f.subs, c)
	return c
}

func (f *fanout) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

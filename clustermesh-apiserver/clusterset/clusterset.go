// Package clusterset makes our cluster a member of the cluster set: it follows
// what our cluster and the peers say of their Services, has mcs.Planner decide,
// and holds what is wanted in tables. Every replica publishes what is for the
// peers; the elected one keeps the objects of the MCS API.
package clusterset

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Options of a Member.
type Options struct {
	Base mcs.Base
	// Sources are the tables that it follows.
	Services   *state.Table[model.ServiceKey, mcs.Service]
	Derived    *state.Table[model.ServiceKey, mcs.DerivedAddrs]
	Exports    *state.Table[model.ServiceKey, mcs.Export]
	Namespaces *state.Table[string, model.Namespace]
	Slices     *state.Table[model.SliceKey, string]  // ours by kube.Source, peers' by Source(peer)
	Claims     *state.Table[model.ExportKey, string] // exports of peers, by Source(peer)
	// Peers is who the peers are, and whether that is known yet. It is asked every
	// second, and when Wake is readable.
	Peers func() (peers map[string]Peer, known bool)
	Wake  <-chan struct{}
	Now   func() time.Time
	Log   *slog.Logger
	Board *status.Board
}

// Peer is a peer as far as it can be relied on.
type Peer struct {
	mcs.Peer
	Refused bool // its Peer object can't be used: nothing is to come from it
}

// Source is the name under which the rows of a peer are claimed.
func Source(peer string) string { return "peer/" + peer }

// Member decides. Create it with New.
type Member struct {
	opt     Options
	planner *mcs.Planner

	imports  *state.Table[model.ServiceKey, mcs.Import]
	statuses *state.Table[model.ServiceKey, mcs.ExportStatus]
	services *state.Table[model.ServiceKey, mcs.DerivedService]
	slices   *state.Table[model.ServiceKey, mcs.DerivedSlice]
	wire     *state.Table[string, string]

	begun bool         // owned by Run: objects follow the plan
	lines status.Shown // owned by Run
}

const source = "plan"

// New returns a member that follows nothing yet.
func New(opt Options) *Member {
	m := &Member{opt: opt, planner: mcs.NewPlanner(opt.Base, uint64(opt.Now().UnixMilli())),
		imports: state.New[model.ServiceKey, mcs.Import](), statuses: state.New[model.ServiceKey, mcs.ExportStatus](),
		services: state.New[model.ServiceKey, mcs.DerivedService](), slices: state.New[model.ServiceKey, mcs.DerivedSlice](), wire: state.New[string, string]()}
	for _, expect := range []func(...string){opt.Services.Expect, opt.Derived.Expect, opt.Exports.Expect, opt.Namespaces.Expect, opt.Slices.Expect} {
		expect(kube.Source)
	}
	for _, expect := range []func(...string){m.imports.Expect, m.statuses.Expect, m.services.Expect, m.slices.Expect, m.wire.Expect} {
		expect(source)
	}
	return m
}

// Wire are the rows to publish, by the part of their keys behind
// wire.ExportPrefix. It is synced once everything of our own cluster has been read.
func (m *Member) Wire() *state.Table[string, string] { return m.wire }

// Run decides until ctx ends.
func (m *Member) Run(ctx context.Context) error {
	ours, derived, exports := m.opt.Services.Follow(), m.opt.Derived.Follow(), m.opt.Exports.Follow()
	namespaces, backends, claims := m.opt.Namespaces.Follow(), m.opt.Slices.Follow(), m.opt.Claims.Follow()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var peers map[string]Peer
	peersKnown := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ours.C:
		case <-derived.C:
		case <-exports.C:
		case <-namespaces.C:
		case <-backends.C:
		case <-claims.C:
		case <-m.opt.Wake:
			peers, peersKnown = m.look()
		case <-tick.C:
			peers, peersKnown = m.look()
		}
		// First: what has been reported by now is among the rows that are taken.
		reported := sources{m.opt.Claims.Sources(), m.opt.Slices.Sources()}
		known := peersKnown
		take(ours, &known, m.planner.SetServices)
		take(derived, &known, m.planner.SetAddrs)
		take(exports, &known, m.planner.SetExports)
		take(namespaces, &known, func(set map[string]model.Namespace, del []string) {
			names := make([]string, 0, len(set))
			for n := range set {
				names = append(names, n)
			}
			m.planner.SetNamespaces(names, del)
		})
		take(backends, new(bool), m.planner.SetSlices)
		take(claims, new(bool), m.planner.SetClaims)
		if !known || !reported.slices[kube.Source] {
			continue // half of what our cluster has would be taken back from the peers
		}
		m.put(m.planner.Plan(), reported, peers)
	}
}

// look tells the planner who the peers are and what time it is.
func (m *Member) look() (peers map[string]Peer, known bool) {
	peers, known = m.opt.Peers()
	all := make(map[string]mcs.Peer, len(peers))
	for name, p := range peers {
		all[name] = p.Peer
	}
	m.planner.SetPeers(all)
	m.planner.SetNow(uint64(m.opt.Now().UnixMilli()))
	return peers, known
}

// sources are who claims rows, and whether they have told all they have.
type sources struct{ claims, slices map[string]bool }

func take[K, V comparable](from *state.Changes[K, V], known *bool, into func(map[K]V, []K)) {
	set, del, synced := from.Take()
	*known = *known && synced
	if len(set)+len(del) > 0 {
		into(set, del)
	}
}

// wait tells whether one of the peers that count has yet to tell all that it
// exports, in this life of the mirror.
func (s sources) wait(peers map[string]Peer, counts func(mcs.Freshness) bool) bool {
	for name, p := range peers {
		if !p.Refused && counts(p.Freshness) && (!s.claims[Source(name)] || !s.slices[Source(name)]) {
			return true
		}
	}
	return false
}

// put makes the tables those of a plan. Peers learn of our Services at once.
// Objects are those of a life before ours until every peer that is alive has told
// what it has, and what may be due to one that is silent is not deleted.
func (m *Member) put(p *mcs.Plan, reported sources, peers map[string]Peer) {
	m.lines.Show(m.opt.Board, m.opt.Log, m.planner.Lines())
	if !m.wire.Synced() {
		m.wire.Replace(source, maps.Clone(p.Wire))
	} else {
		update(m.wire, p.Patch.Wire)
	}
	switch {
	case !m.begun && reported.wait(peers, func(f mcs.Freshness) bool { return f == mcs.Fresh }):
		return
	case !m.begun:
		m.begun = true
		m.statuses.Update(source, p.Exports, nil)
		m.imports.Update(source, p.Imports, nil)
		m.services.Update(source, p.Services, nil)
		m.slices.Update(source, p.Slices, nil)
	default:
		update(m.statuses, p.Patch.Exports)
		update(m.imports, p.Patch.Imports)
		update(m.services, p.Patch.Services)
		update(m.slices, p.Patch.Slices)
	}
	if !m.imports.Synced() && !reported.wait(peers, func(f mcs.Freshness) bool { return f != mcs.Expired }) {
		m.statuses.Replace(source, maps.Clone(p.Exports))
		m.imports.Replace(source, maps.Clone(p.Imports))
		m.services.Replace(source, maps.Clone(p.Services))
		m.slices.Replace(source, maps.Clone(p.Slices))
	}
}

func update[K, V comparable](t *state.Table[K, V], c mcs.Changes[K, V]) {
	t.Update(source, c.Set, c.Del)
}

// RunObjects keeps the objects of the MCS API until ctx ends. One replica runs it.
func (m *Member) RunObjects(ctx context.Context, set *kube.ClusterSet, opt reconcile.Options) error {
	if err := set.Wait(ctx, m.opt.Log, func() {}); err != nil {
		return err
	}
	if err := listed(ctx, set.Imports()); err != nil { // so that owners are known
		return err
	}
	missed := missed{m.opt.Derived, m.services}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop(ctx, "service-imports", imports{set.Imports(), missed}, m.imports, opt) })
	g.Go(func() error { return loop(ctx, "service-exports", set.ExportStatuses(), m.statuses, opt) })
	g.Go(func() error {
		return loop(ctx, "clusterset-services", services{set.DerivedServices(), missed}, m.services, opt)
	})
	g.Go(func() error {
		return loop(ctx, "clusterset-slices", slices{set.DerivedSlices(), missed}, m.slices, opt)
	})
	return g.Wait()
}

type imports struct {
	kube.ImportTarget
	missed
}

type services struct {
	kube.DerivedServiceTarget
	missed
}

type slices struct {
	kube.DerivedSliceTarget
	missed
}

// listed waits until a target has been listed.
func listed(ctx context.Context, t kube.ImportTarget) error {
	for {
		if _, err := t.List(ctx); err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// missed tells at once when derived Services, which have the addresses of imports,
// are deleted by others: they themselves, or the imports that own them.
type missed struct {
	there  *state.Table[model.ServiceKey, mcs.DerivedAddrs]
	wanted *state.Table[model.ServiceKey, mcs.DerivedService]
}

// Watch implements reconcile.Watcher.
func (s missed) Watch(ctx context.Context, wake func()) error {
	changes := s.there.Follow()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changes.C:
		}
		_, del, _ := changes.Take()
		for _, k := range del {
			if _, wanted := s.wanted.Get(k); wanted {
				wake()
			}
		}
	}
}

func loop[V comparable](ctx context.Context, name string, target reconcile.Target[model.ServiceKey, V], table *state.Table[model.ServiceKey, V], opt reconcile.Options) error {
	orphans := func() reconcile.Orphan[model.ServiceKey] {
		synced := table.Synced()
		return func(model.ServiceKey) bool { return synced }
	}
	return reconcile.NewTableLoop(name, target, table, orphans, opt).Run(ctx)
}

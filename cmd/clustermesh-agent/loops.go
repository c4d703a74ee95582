package main

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// runner is a reconcile.Loop without its types.
type runner interface {
	Run(context.Context) error
	Sync(context.Context) error
}

// loops are the kernel targets, each kept as the newest plan has it.
type loops struct {
	filter *nft.Target
	order  []runner // filters before devices, devices before what refers to them
	pods   []runner // those that a pod's wiring depends on
}

func newLoops(w *world, opt reconcile.Options) *loops {
	var space nl.Space
	filter := nft.New(space)
	nftLoop := loopOf(w, opt, "nft", filter, func(p *plan.Plan) map[plan.FilterKey]plan.FilterRow { return p.Filter })
	sysctls := loopOf(w, opt, "sysctls", link.NewSysctls(space), func(p *plan.Plan) map[string]string { return p.Sysctls })
	tunnels := loopOf(w, opt, "tunnel", link.NewTunnels(space), func(p *plan.Plan) map[string]plan.Tunnel { return p.Tunnels })
	neighbours := loopOf(w, opt, "neighbours", route.NewNeighbours(space), func(p *plan.Plan) map[plan.NeighbourKey]plan.Neighbour { return p.Neighbours })
	routes := loopOf(w, opt, "routes", route.NewRoutes(space), func(p *plan.Plan) map[plan.RouteKey]plan.Route { return p.Routes })
	rules := loopOf(w, opt, "rules", route.NewRules(space), func(p *plan.Plan) map[plan.RuleKey]plan.Rule { return p.Rules })
	return &loops{
		filter: filter,
		order:  []runner{nftLoop, tunnels, sysctls, neighbours, routes, rules},
		pods:   []runner{nftLoop, neighbours, routes},
	}
}

// loopOf is the loop of one target, which holds the part of the plan that rows picks.
func loopOf[K, V comparable](w *world, opt reconcile.Options, name string, target reconcile.Target[K, V], rows func(*plan.Plan) map[K]V) runner {
	wanted := func() (map[K]V, bool) {
		p, complete := w.current()
		if p == nil {
			return nil, false
		}
		return rows(p), complete
	}
	return reconcile.NewLoop(name, target, wanted, opt, w.change.subscribe())
}

// run runs all loops until ctx ends. Each waits for the one before it to have
// had its first pass: filters stand before anything can be reached.
func (l *loops) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range l.order {
		g.Go(func() error { return r.Run(ctx) })
		if err := r.Sync(ctx); err != nil && ctx.Err() != nil {
			break
		}
	}
	return g.Wait()
}

// sync waits until the targets that pods need hold the newest plan.
func (l *loops) sync(ctx context.Context) error { return syncAll(ctx, l.pods) }

// syncEverything does so for all targets.
func (l *loops) syncEverything(ctx context.Context) error { return syncAll(ctx, l.order) }

func syncAll(ctx context.Context, rs []runner) error {
	errs := make([]error, len(rs))
	var g errgroup.Group
	for i, r := range rs {
		g.Go(func() error { errs[i] = r.Sync(ctx); return nil })
	}
	_ = g.Wait() // the errors are in errs: all of them, not the first
	return errors.Join(errs...)
}

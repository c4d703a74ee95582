package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// runner is a reconcile.Loop without its types. first waits for a pass in which
// the rows did not fail that everything else stands on.
type runner struct{ run, first func(context.Context) error }

// loops are the kernel targets, each kept as the newest plan has it.
type loops struct {
	filter *nft.Target
	order  []runner                                 // filters before devices, devices before what refers to them
	pods   []func(context.Context, model.Pod) error // each waits for the rows of a pod
	// announced waits for what the answering for an address stands on.
	announced func(context.Context, netip.Addr) error
}

func newLoops(w *world, b *balancers, opt reconcile.Options) *loops {
	var space nl.Space
	l := &loops{filter: nft.New(space)}
	filters := loopOf(w, opt, "nft", l.filter, w.out.filter,
		func(u plan.Unreported, k plan.FilterKey) bool { return u.Filter(k) && b.filter(k) })
	tunnels := loopOf(w, opt, "tunnel", link.NewTunnels(space), w.out.tunnels, always[string])
	sysctls := loopOf(w, opt, "sysctls", link.NewSysctls(space), w.out.sysctls, always[string])
	neighbours := loopOf(w, opt, "neighbours", route.NewNeighbours(space), w.out.neighbours, plan.Unreported.Neighbour)
	routes := loopOf(w, opt, "routes", route.NewRoutes(space), w.out.routes,
		func(u plan.Unreported, k plan.RouteKey) bool { return u.Route(k) && b.route(k) })
	rules := loopOf(w, opt, "rules", route.NewRules(space), w.out.rules, always[plan.RuleKey])
	l.order = []runner{
		runnerOf(filters, func(k plan.FilterKey) bool { return k == plan.FilterKey{} }),
		runnerOf(tunnels, none), runnerOf(sysctls, none), runnerOf(neighbours, none), runnerOf(routes, none),
		runnerOf(rules, nil),
	}
	l.announced = func(ctx context.Context, a netip.Addr) error {
		return errors.Join(filters.SyncRows(ctx, func(k plan.FilterKey) bool { return k == plan.FilterKey{} || k.Announcing() && k.Addr == a }),
			routes.SyncRows(ctx, func(k plan.RouteKey) bool { return k.Dst.IsSingleIP() && k.Dst.Addr() == a }))
	}
	l.pods = []func(context.Context, model.Pod) error{
		podRows(filters, func(k plan.FilterKey, pod model.Pod) bool { return k == plan.FilterKey{} || k.Dev == pod.HostIf }),
		podRows(neighbours, func(k plan.NeighbourKey, pod model.Pod) bool { return k.Dev == pod.HostIf }),
		podRows(routes, func(k plan.RouteKey, pod model.Pod) bool {
			return k.Dst.IsSingleIP() && slices.Contains(pod.IPs.All(), k.Dst.Addr())
		}),
	}
	return l
}

func always[K comparable](plan.Unreported, K) bool { return true }

func none[K comparable](K) bool { return false }

// loopOf is the loop of one target. spare says which rows that nobody wants may
// go while peers are missing.
func loopOf[K, V comparable](w *world, opt reconcile.Options, name string, target reconcile.Target[K, V], rows *state.Table[K, V],
	spare func(plan.Unreported, K) bool) *reconcile.Loop[K, V] {
	return reconcile.NewTableLoop(name, target, rows, orphans(w, spare), opt, w.grown.subscribe())
}

func runnerOf[K, V comparable](l *reconcile.Loop[K, V], first func(K) bool) runner {
	return runner{run: l.Run, first: func(ctx context.Context) error { return l.SyncRows(ctx, first) }}
}

func podRows[K, V comparable](l *reconcile.Loop[K, V], mine func(K, model.Pod) bool) func(context.Context, model.Pod) error {
	return func(ctx context.Context, pod model.Pod) error {
		return l.SyncRows(ctx, func(k K) bool { return mine(k, pod) })
	}
}

// run runs all loops until ctx ends. Each waits for the one before it to have
// what the others stand on; without filters, above all, nothing is reachable.
func (l *loops) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range l.order {
		g.Go(func() error { return r.run(ctx) })
		for ctx.Err() == nil && r.first(ctx) != nil { // it is retried and shown
			pause(ctx, 100*time.Millisecond)
		}
	}
	return g.Wait()
}

// syncPod waits until the targets hold the rows of a pod.
func (l *loops) syncPod(ctx context.Context, pod model.Pod) error {
	errs := make([]error, len(l.pods))
	var g errgroup.Group
	for i, sync := range l.pods {
		g.Go(func() error { errs[i] = sync(ctx, pod); return nil })
	}
	_ = g.Wait() // the errors are in errs: all of them, not the first
	return errors.Join(errs...)
}

// syncFirst waits until all targets have what everything else stands on.
func (l *loops) syncFirst(ctx context.Context) error {
	var errs []error
	for _, r := range l.order {
		errs = append(errs, r.first(ctx))
	}
	return errors.Join(errs...)
}

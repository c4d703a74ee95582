// Package export publishes what this cluster tells the mesh: it keeps the rows
// below wire.ExportPrefix as plan.Exports wants them, and beats the heart.
package export

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Options of an Export.
type Options struct {
	Cluster string
	Store   *clientv3.Client
	// Input is all that the export depends on, and whether all of it has been
	// read; until then nothing is deleted and nothing is vouched for.
	Input func() (in plan.ExportInput, complete bool)
	Wakes []<-chan struct{} // readable when Input may have changed
	// Services are the rows of Services, their slices and exports, by the part of
	// their keys behind wire.ExportPrefix. They are followed row by row, since there
	// may be many.
	Services *state.Table[string, string]
	Log      *slog.Logger
	Board    *status.Board
	Meter    reconcile.Meter
}

// Export publishes. Create it with New.
type Export struct {
	opt     Options
	loop    *reconcile.Loop[string, string]
	many    *reconcile.Loop[string, string] // of the rows of Services
	written atomic.Bool
	ready   chan struct{} // closed when all is published and vouched for
	once    sync.Once
}

// New returns an export that does nothing yet.
func New(opt Options) *Export {
	e := &Export{opt: opt, ready: make(chan struct{})}
	target := rows{kvstore.NewTarget(opt.Store, wire.ExportPrefix(opt.Cluster)), &e.written}
	o := reconcile.Options{Log: opt.Log, Board: opt.Board, Meter: opt.Meter}
	e.loop = reconcile.NewLoop("export", target, e.wanted, o, opt.Wakes...)
	e.many = reconcile.NewTableLoop("export-services", serviceRows{target.Target}, opt.Services, e.orphans, o)
	return e
}

func (e *Export) orphans() reconcile.Orphan[string] {
	complete := e.opt.Services.Synced()
	return func(string) bool { return complete }
}

func (e *Export) wanted() (map[string]string, bool) {
	in, complete := e.opt.Input()
	in.Written = e.written.Load()
	return plan.Exports(in), complete
}

// Ready is closed once everything is published and vouched for.
func (e *Export) Ready() <-chan struct{} { return e.ready }

// Wake asks for a pass.
func (e *Export) Wake() { e.loop.Wake() }

// Run publishes until ctx ends.
func (e *Export) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.loop.Run(ctx) })
	g.Go(func() error { return e.many.Run(ctx) })
	g.Go(func() error { return e.vouch(ctx) })
	g.Go(func() error { return e.beat(ctx) })
	return g.Wait()
}

// vouch writes the marks after all rows that they speak of.
func (e *Export) vouch(ctx context.Context) error {
	for !e.published(ctx) {
		if !pause(ctx) {
			return ctx.Err()
		}
	}
	e.written.Store(true)
	for e.loop.Sync(ctx) != nil {
		if !pause(ctx) {
			return ctx.Err()
		}
	}
	e.once.Do(func() { close(e.ready) })
	<-ctx.Done()
	return ctx.Err()
}

// beat begins once everything is published, in this life or in one before: a
// cluster that has published nothing yet is not alive to others.
func (e *Export) beat(ctx context.Context) error {
	mark := wire.ExportPrefix(e.opt.Cluster) + wire.SyncedTail(wire.KindNode).String()
	for {
		resp, err := e.opt.Store.Get(ctx, mark)
		if err == nil && len(resp.Kvs) > 0 {
			break
		}
		if !pause(ctx) {
			return ctx.Err()
		}
	}
	count := uint64(time.Now().UnixMilli()) // grows over restarts
	value := func() string {
		count++
		return string(wire.Heartbeat{Count: count, At: time.Now()}.Encode())
	}
	key := wire.ExportPrefix(e.opt.Cluster) + wire.HeartbeatTail().String()
	return kvstore.NewHeartbeat(e.opt.Store, key, value, kvstore.HeartbeatOptions{Log: e.opt.Log}).Run(ctx)
}

// pause tells whether ctx still goes on after a moment.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100 * time.Millisecond):
		return true
	}
}

// published tells that a pass which began with complete input has succeeded.
func (e *Export) published(ctx context.Context) bool {
	if _, complete := e.opt.Input(); !complete || !e.opt.Services.Synced() {
		return false
	}
	return e.loop.Sync(ctx) == nil && e.many.Sync(ctx) == nil
}

// rows are the export without the heartbeat, which has a writer of its own, and
// without marks until they may be written: those of a life before still hold,
// since nothing that they vouched for is deleted before Kubernetes was read.
type rows struct {
	*kvstore.Target
	written *atomic.Bool
}

// List implements reconcile.Target.
func (r rows) List(ctx context.Context) (map[string]string, error) {
	written := r.written.Load()
	all, err := r.Target.List(ctx)
	maps.DeleteFunc(all, func(k, _ string) bool {
		return k == wire.HeartbeatTail().String() || ofService(k) || !written && strings.HasPrefix(k, wire.KindPrefix(wire.KindSynced))
	})
	return all, err
}

// serviceRows are the rows of Services.
type serviceRows struct{ *kvstore.Target }

// List implements reconcile.Target.
func (r serviceRows) List(ctx context.Context) (map[string]string, error) {
	all, err := r.Target.List(ctx)
	maps.DeleteFunc(all, func(k, _ string) bool { return !ofService(k) })
	return all, err
}

func ofService(key string) bool {
	for _, k := range []wire.Kind{wire.KindService, wire.KindSlice, wire.KindExport} {
		if strings.HasPrefix(key, wire.KindPrefix(k)) {
			return true
		}
	}
	return false
}

// Incarnation names the life of a store in the cluster row.
func Incarnation(ctx context.Context, store *clientv3.Client) (string, error) {
	resp, err := store.Get(ctx, wire.Root, clientv3.WithCountOnly())
	if err != nil {
		return "", fmt.Errorf("ask the store for its identity: %w", err)
	}
	return fmt.Sprintf("%016x", resp.Header.ClusterId), nil
}

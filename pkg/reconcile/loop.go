package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Wanted says which rows a target should hold. Until complete is true rows are
// added and changed but never deleted, because a source has yet to report.
// A Wanted function decides and does no I/O.
type Wanted[K, V comparable] func() (rows map[K]V, complete bool)

// Orphan tells whether a row that nobody wants may be deleted.
type Orphan[K comparable] func(K) bool

// Options of a Loop. The zero value is usable.
type Options struct {
	Log    *slog.Logger
	Board  *status.Board
	Resync time.Duration // full comparison with the target; 0 means 60 s
	Meter  Meter         // nil means none
}

// Meter counts what a loop does.
type Meter interface {
	// Pass is called after every pass with the number of rows set, deleted
	// and failed, how long it took, and how many rows the target now holds.
	Pass(name string, set, deleted, failed, held int, took time.Duration)
}

// Loop keeps a target as wanted. Create it with NewLoop.
type Loop[K, V comparable] struct {
	name    string
	target  Target[K, V]
	wanted  func() (rows map[K]V, orphan Orphan[K])
	orphans func() Orphan[K]     // with follow
	follow  *state.Changes[K, V] // nil: wanted is looked at whole in every pass
	wakes   []<-chan struct{}
	opt     Options

	wake chan struct{}

	mu      sync.Mutex
	waiters []waiter[K] // guarded by mu: answered by the first pass that starts after them

	// Owned by Run.
	actual  map[K]V        // nil: must be listed
	spared  map[K]struct{} // rows that nobody wants, and that could not be deleted yet
	backoff time.Duration
	failing bool
}

// waiter waits for the outcome of a pass.
type waiter[K comparable] struct {
	done chan error
	mine func(K) bool // rows whose failure counts; nil: all
}

const (
	defaultResync = 60 * time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 10 * time.Second
)

// NewLoop returns a loop that runs a pass whenever one of wakes is readable.
func NewLoop[K, V comparable](name string, target Target[K, V], wanted Wanted[K, V], opt Options, wakes ...<-chan struct{}) *Loop[K, V] {
	return newLoop(name, target, func() (map[K]V, Orphan[K]) {
		rows, complete := wanted()
		return rows, func(K) bool { return complete }
	}, opt, wakes...)
}

// NewTableLoop returns a loop that keeps a target equal to a table. A pass looks
// at the rows that changed, and at all only after it has listed the target.
// orphans is asked in every pass, and a pass is run whenever one of wakes is
// readable, too.
func NewTableLoop[K, V comparable](name string, target Target[K, V], table *state.Table[K, V], orphans func() Orphan[K], opt Options,
	wakes ...<-chan struct{}) *Loop[K, V] {
	follow := table.Follow()
	wanted := func() (map[K]V, Orphan[K]) {
		orphan := orphans() // first: what is known by now must be in the rows
		return table.Rows(), orphan
	}
	l := newLoop(name, target, wanted, opt, append(wakes, follow.C)...)
	l.follow, l.orphans = follow, orphans
	return l
}

func newLoop[K, V comparable](name string, target Target[K, V], wanted func() (map[K]V, Orphan[K]), opt Options, wakes ...<-chan struct{}) *Loop[K, V] {
	if opt.Resync == 0 {
		opt.Resync = defaultResync
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Loop[K, V]{name: name, target: target, wanted: wanted, wakes: wakes, opt: opt, wake: make(chan struct{}, 1)}
}

// Wake asks for a pass. It never blocks.
func (l *Loop[K, V]) Wake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Sync waits for a pass that began after the call and returns its error: nil
// means that the target holds all that was wanted when Sync was called.
func (l *Loop[K, V]) Sync(ctx context.Context) error { return l.SyncRows(ctx, nil) }

// SyncRows is Sync for some rows only: the others may fail. With a function that
// is never true it waits for the target to have been listed.
func (l *Loop[K, V]) SyncRows(ctx context.Context, mine func(K) bool) error {
	done := make(chan error, 1)
	l.mu.Lock()
	l.waiters = append(l.waiters, waiter[K]{done, mine})
	l.mu.Unlock()
	l.Wake()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", l.name, ctx.Err())
	}
}

// Run reconciles until ctx ends.
func (l *Loop[K, V]) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	for _, w := range l.wakes {
		helpers.Go(func() { l.forward(ctx, w) })
	}
	relist := make(chan struct{}, 1)
	if w, ok := l.target.(Watcher); ok {
		helpers.Go(func() { l.watch(ctx, w, relist) })
	}
	resync := time.NewTimer(l.opt.Resync)
	defer resync.Stop()
	for {
		retry := l.pass(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.wake:
		case <-retry:
		case <-relist:
			l.actual = nil
		case <-resync.C:
			l.actual = nil
			resync.Reset(jitter(l.opt.Resync))
		}
	}
}

func (l *Loop[K, V]) forward(ctx context.Context, c <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c:
			l.Wake()
		}
	}
}

// watch keeps the target's own notifications coming. What was missed while it
// was down is covered by listing again when it is back.
func (l *Loop[K, V]) watch(ctx context.Context, w Watcher, relist chan struct{}) {
	poke := func() {
		select {
		case relist <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		err := w.Watch(ctx, poke)
		if ctx.Err() != nil {
			return
		}
		l.opt.Log.Warn("target watch ended", "target", l.name, "error", err)
		sleep(ctx, jitter(time.Second))
		poke()
	}
}

// pass does one round. The channel it returns fires when a failed pass should
// be tried again; it is nil after a good one.
func (l *Loop[K, V]) pass(ctx context.Context) <-chan time.Time {
	l.mu.Lock()
	waiters := l.waiters
	l.waiters = nil
	l.mu.Unlock()

	failed, err := l.once(ctx)
	for _, w := range waiters {
		w.done <- cmp.Or(err, joinFailed(l.name, failed, w.mine))
	}
	if err == nil {
		err = joinFailed(l.name, failed, nil)
	}
	if ctx.Err() != nil {
		return nil
	}
	l.report(err)
	if err == nil {
		l.backoff = 0
		return nil
	}
	l.actual = nil
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	return time.After(jitter(l.backoff))
}

// once does one round and returns the rows that failed. An error of its own
// means that the target could not be listed.
func (l *Loop[K, V]) once(ctx context.Context) (failed map[K]error, err error) {
	start := time.Now()
	listed := l.actual == nil
	if listed {
		actual, err := l.target.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", l.name, err)
		}
		l.actual, l.spared = actual, map[K]struct{}{}
	}
	set, del := l.difference(listed)
	if len(set)+len(del) > 0 {
		failed = l.target.Apply(ctx, set, del)
		l.remember(set, del, failed)
	}
	if l.opt.Meter != nil {
		l.opt.Meter.Pass(l.name, len(set), len(del), len(failed), len(l.actual), time.Since(start))
	}
	return failed, nil
}

// difference is what has to be done now. Deletions that have to wait are kept
// for later passes.
func (l *Loop[K, V]) difference(listed bool) (set map[K]V, del []K) {
	var orphan Orphan[K]
	if l.follow == nil || listed {
		if l.follow != nil {
			l.follow.Take() // what changes from here on is in the rows, or comes again
		}
		var rows map[K]V
		rows, orphan = l.wanted()
		set, del = Delta(l.actual, rows)
		clear(l.spared)
	} else {
		orphan = l.orphans() // as in NewTableLoop
		changed, gone, _ := l.follow.Take()
		set = map[K]V{}
		for k, v := range changed {
			delete(l.spared, k)
			if a, ok := l.actual[k]; !ok || a != v {
				set[k] = v
			}
		}
		for _, k := range gone {
			if _, ok := l.actual[k]; ok {
				l.spared[k] = struct{}{}
			}
		}
		for k := range l.spared {
			del = append(del, k)
		}
	}
	now := del[:0]
	for _, k := range del {
		if orphan(k) {
			now = append(now, k)
			delete(l.spared, k)
		} else {
			l.spared[k] = struct{}{}
		}
	}
	return set, now
}

// remember updates our copy of what the target holds. Large maps that have
// emptied are replaced: ranging over them would stay slow.
func (l *Loop[K, V]) remember(set map[K]V, del []K, failed map[K]error) {
	if len(failed) > 0 {
		return // the failed pass lists again
	}
	maps.Copy(l.actual, set)
	for _, k := range del {
		delete(l.actual, k)
	}
	if len(del) > 1024 && len(del) > len(l.actual) {
		l.actual = maps.Clone(l.actual)
	}
}

// joinFailed makes one error of the first few failures of rows that count, with
// their number.
func joinFailed[K comparable](name string, failed map[K]error, mine func(K) bool) error {
	const most = 3
	var errs []error
	n := 0
	for k, err := range failed {
		if mine != nil && !mine(k) {
			continue
		}
		if n++; n <= most {
			errs = append(errs, fmt.Errorf("%v: %w", k, err))
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d rows: %w", name, n, errors.Join(errs...))
}

func (l *Loop[K, V]) report(err error) {
	failing := err != nil
	if failing != l.failing || failing && l.backoff == 0 {
		if failing {
			l.opt.Log.Error("target not as wanted, retrying", "target", l.name, "error", err)
		} else {
			l.opt.Log.Info("target as wanted again", "target", l.name)
		}
	}
	l.failing = failing
	if l.opt.Board == nil {
		return
	}
	key := status.Key{Component: l.name}
	if failing {
		l.opt.Board.Set(key, status.Degraded, err.Error(), "it is retried; see the log if it stays")
		return
	}
	l.opt.Board.Set(key, status.OK, fmt.Sprintf("%d rows", len(l.actual)), "")
}

// jitter spreads d by a quarter either way, so that many nodes do not act in step.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(rand.Int64N(int64(d)/2+1))
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

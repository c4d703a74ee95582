package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// Wanted says which rows a target should hold. Until complete is true rows are
// added and changed but never deleted, because a source has yet to report.
// A Wanted function decides and does no I/O.
type Wanted[K, V comparable] func() (rows map[K]V, complete bool)

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
	name   string
	target Target[K, V]
	wanted Wanted[K, V]
	wakes  []<-chan struct{}
	opt    Options

	wake chan struct{}

	mu      sync.Mutex
	waiters []chan error // guarded by mu: answered by the first pass that starts after them

	// Owned by Run.
	actual  map[K]V // nil: must be listed
	backoff time.Duration
	failing bool
}

const (
	defaultResync = 60 * time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 10 * time.Second
)

// NewLoop returns a loop that runs a pass whenever one of wakes is readable.
func NewLoop[K, V comparable](name string, target Target[K, V], wanted Wanted[K, V], opt Options, wakes ...<-chan struct{}) *Loop[K, V] {
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
func (l *Loop[K, V]) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	l.mu.Lock()
	l.waiters = append(l.waiters, done)
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

	err := l.once(ctx)
	for _, w := range waiters {
		w <- err
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

func (l *Loop[K, V]) once(ctx context.Context) error {
	start := time.Now()
	if l.actual == nil {
		actual, err := l.target.List(ctx)
		if err != nil {
			return fmt.Errorf("list %s: %w", l.name, err)
		}
		l.actual = actual
	}
	wanted, complete := l.wanted()
	set, del := Delta(l.actual, wanted)
	if !complete {
		del = nil
	}
	var failed map[K]error
	if len(set)+len(del) > 0 {
		failed = l.target.Apply(ctx, set, del)
		l.remember(set, del, failed)
	}
	if l.opt.Meter != nil {
		l.opt.Meter.Pass(l.name, len(set), len(del), len(failed), len(l.actual), time.Since(start))
	}
	return joinFailed(l.name, failed)
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

// joinFailed makes one error of the first few failures, with their number.
func joinFailed[K comparable](name string, failed map[K]error) error {
	if len(failed) == 0 {
		return nil
	}
	const most = 3
	var errs []error
	for k, err := range failed {
		if len(errs) < most {
			errs = append(errs, fmt.Errorf("%v: %w", k, err))
		}
	}
	return fmt.Errorf("%s: %d rows: %w", name, len(failed), errors.Join(errs...))
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
		l.opt.Board.Set(key, status.Degraded, err.Error(), "it is retried; see the agent's log if it stays")
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

package kvstore

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Gate bounds how many readers list at a time, in the order in which they came,
// so that of many peers the first is complete early instead of all at the end.
type Gate struct{ sem *semaphore.Weighted }

// slice is how long one reader may keep its place: a peer that answers slowly
// holds up the others no longer than that, and lists on without a place.
const slice = 5 * time.Second

// NewGate returns a gate for n readers.
func NewGate(n int64) *Gate { return &Gate{semaphore.NewWeighted(n)} }

// enter waits for a place. leave may be called more than once.
func (g *Gate) enter(ctx context.Context) (leave func(), err error) {
	if g == nil {
		return func() {}, nil
	}
	if err := g.sem.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	var once sync.Once
	release := func() { once.Do(func() { g.sem.Release(1) }) }
	timer := time.AfterFunc(slice, release)
	return func() { timer.Stop(); release() }, nil
}

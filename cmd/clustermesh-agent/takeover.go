package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// takeover is the target of the proxy entries, and tells neighbours of those
// that are new: they may know the address elsewhere. An entry that a restarted
// agent finds is not new.
type takeover struct {
	*route.Proxies
	log  *slog.Logger
	send func(plan.NeighbourKey) error

	mu    sync.Mutex
	tell  map[plan.NeighbourKey]int // guarded by mu: how often they are told yet
	wakes chan struct{}
}

// How often neighbours are told of an address, and with which pause. A frame
// may be lost, and who answered before may do so a moment longer.
const (
	tellTimes = 3
	tellEvery = time.Second
)

func newTakeover(log *slog.Logger, t *route.Proxies) *takeover {
	return &takeover{Proxies: t, log: log, tell: map[plan.NeighbourKey]int{}, wakes: make(chan struct{}, 1),
		send: func(key plan.NeighbourKey) error { return gratuitous.Send(nl.Space{}, key.Dev, key.IP) }}
}

// Apply implements reconcile.Target.
func (t *takeover) Apply(ctx context.Context, set map[plan.NeighbourKey]plan.Proxy, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	failed := t.Proxies.Apply(ctx, set, del)
	t.mu.Lock()
	for key := range set {
		if failed[key] == nil {
			t.tell[key] = tellTimes
		}
	}
	for _, key := range del {
		delete(t.tell, key)
	}
	t.mu.Unlock()
	select {
	case t.wakes <- struct{}{}:
	default:
	}
	return failed
}

// run tells neighbours until ctx ends.
func (t *takeover) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wakes:
		}
		for t.once() {
			if pause(ctx, tellEvery); ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
}

// once tells of every address once, and whether there are any left.
func (t *takeover) once() (more bool) {
	t.mu.Lock()
	var now []plan.NeighbourKey
	for key, left := range t.tell {
		now = append(now, key)
		if t.tell[key] = left - 1; left == 1 {
			delete(t.tell, key)
		}
	}
	more = len(t.tell) > 0
	t.mu.Unlock()
	var errs []error
	for _, key := range now {
		errs = append(errs, t.send(key))
	}
	if err := errors.Join(errs...); err != nil {
		t.log.Warn("neighbours not told of an address; they find out by themselves", "error", err)
	}
	return more
}

package main

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// takeover is the target of the proxy entries. It sets them only when the rest
// is in place that packets to the address need, above all what refuses those that
// no Service takes. And it has neighbours told of entries that are new: they may
// know the address elsewhere. An entry that a restarted agent finds is not new.
type takeover struct {
	reconcile.Target[plan.NeighbourKey, plan.Proxy]
	reconcile.Watcher
	teller *gratuitous.Teller
	ready  func(context.Context, netip.Addr) error
}

// readyTime bounds the wait for the rest; then it is tried again, and shown.
const readyTime = 5 * time.Second

// Apply implements reconcile.Target. Entries that go do not wait for anything.
func (t takeover) Apply(ctx context.Context, set map[plan.NeighbourKey]plan.Proxy, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	failed := map[plan.NeighbourKey]error{}
	if len(del) > 0 {
		failed = t.Target.Apply(ctx, nil, del)
	}
	for _, key := range del {
		t.teller.Forget(gratuitous.Place{Dev: key.Dev, Addr: key.IP})
	}
	if len(set) > 0 {
		maps.Copy(failed, t.set(ctx, set))
	}
	return failed
}

func (t takeover) set(ctx context.Context, set map[plan.NeighbourKey]plan.Proxy) map[plan.NeighbourKey]error {
	failed := t.unready(ctx, set)
	good := maps.Clone(set)
	maps.DeleteFunc(good, func(k plan.NeighbourKey, _ plan.Proxy) bool { return failed[k] != nil })
	if len(good) == 0 {
		return failed
	}
	maps.Copy(failed, t.Target.Apply(ctx, good, nil))
	for key := range good {
		if failed[key] == nil {
			t.teller.Tell(gratuitous.Place{Dev: key.Dev, Addr: key.IP})
		}
	}
	return failed
}

// unready asks for all at once: those who wait for the same pass of a loop get
// its answer together, and one that fails holds up no other.
func (t takeover) unready(ctx context.Context, set map[plan.NeighbourKey]plan.Proxy) map[plan.NeighbourKey]error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	failed := map[plan.NeighbourKey]error{}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for key := range set {
		asked.Go(func() {
			if err := t.ready(ctx, key.IP); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[key] = err
			}
		})
	}
	asked.Wait()
	return failed
}

package main

import (
	"context"
	"maps"
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
	ready  func(context.Context) error
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
	waiting, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	if err := t.ready(waiting); err != nil {
		failed := map[plan.NeighbourKey]error{}
		for key := range set {
			failed[key] = err
		}
		return failed
	}
	failed := t.Target.Apply(ctx, set, nil)
	for key := range set {
		if failed[key] == nil {
			t.teller.Tell(gratuitous.Place{Dev: key.Dev, Addr: key.IP})
		}
	}
	return failed
}

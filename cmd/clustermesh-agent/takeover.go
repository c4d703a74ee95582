package main

import (
	"context"

	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// takeover is the target of the proxy entries, and has neighbours told of those
// that are new: they may know the address elsewhere. An entry that a restarted
// agent finds is not new.
type takeover struct {
	*route.Proxies
	teller *gratuitous.Teller
}

// Apply implements reconcile.Target.
func (t takeover) Apply(ctx context.Context, set map[plan.NeighbourKey]plan.Proxy, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	failed := t.Proxies.Apply(ctx, set, del)
	for key := range set {
		if failed[key] == nil {
			t.teller.Tell(gratuitous.Place{Dev: key.Dev, Addr: key.IP})
		}
	}
	for _, key := range del {
		t.teller.Forget(gratuitous.Place{Dev: key.Dev, Addr: key.IP})
	}
	return failed
}

package balancer

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
)

// addresses is the target for the addresses in the status of Services.
type addresses struct{ *Controller }

// List implements reconcile.Target. It reads the Services themselves and not the
// table, which may not have what another leader wrote a moment ago.
func (a addresses) List(ctx context.Context) (map[lbpool.Key]string, error) {
	rows, err := a.opt.Client.ListBalanced(ctx)
	if err != nil {
		return nil, err
	}
	held, out := map[lbpool.Key]string{}, map[lbpool.Key]string{}
	for key, row := range rows {
		if has := row.Held(); has != "" {
			held[key], out[key] = has, has
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = held
	return out, nil
}

// Apply implements reconcile.Target. An address that moves is never with two
// Services: it is taken away first, and as long as that has not worked the other
// one has to wait.
func (a addresses) Apply(ctx context.Context, set map[lbpool.Key]string, del []lbpool.Key) map[lbpool.Key]error {
	failed := map[lbpool.Key]error{}
	note := func(key lbpool.Key, err error) {
		if err != nil {
			failed[key] = err
		}
	}
	owners := a.owners()
	for _, key := range del {
		note(key, a.put(ctx, key, "", owners))
	}
	for key, list := range set {
		note(key, a.put(ctx, key, list, owners))
	}
	return failed
}

// owners is who has which address.
func (a addresses) owners() map[netip.Addr]lbpool.Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[netip.Addr]lbpool.Key{}
	for key, list := range a.held {
		for _, addr := range lbpool.Addrs(list) {
			out[addr] = key
		}
	}
	return out
}

func (a addresses) put(ctx context.Context, key lbpool.Key, list string, owners map[netip.Addr]lbpool.Key) error {
	var addrs model.Addrs
	for _, x := range lbpool.Addrs(list) {
		if other, taken := owners[x]; taken && other != key {
			return fmt.Errorf("give %v to Service %v: Service %v still has it", x, key, other)
		}
		addrs = addrs.Add(x)
	}
	if err := a.opt.Client.SetBalancerAddresses(ctx, key, addrs); err != nil {
		return err
	}
	a.mu.Lock()
	before := a.held[key]
	if list == "" {
		delete(a.held, key)
	} else {
		a.held[key] = list
	}
	a.mu.Unlock()
	for _, x := range lbpool.Addrs(before) {
		delete(owners, x)
	}
	for _, x := range addrs.All() {
		owners[x] = key
	}
	a.report(key, before, list)
	return nil
}

func (a addresses) report(key lbpool.Key, before, now string) {
	row, there := a.opt.Services.Get(key)
	before = strings.TrimSuffix(before, lbpool.TornMark)
	if !there || before == now {
		return
	}
	a.opt.Log.Info("load balancer address", "service", key, "before", before, "now", now)
	if now == "" {
		a.opt.Recorder.OnService(key, row.UID, false, "LoadBalancerAddressWithdrawn", before+" is no longer its address")
		return
	}
	a.opt.Recorder.OnService(key, row.UID, false, "LoadBalancerAddressGiven", "got "+now+" out of LoadBalancerPools")
}

// relistPause bounds how often Services are read anew because of what others do.
const relistPause = time.Second

// Watch implements reconcile.Watcher: a Service that has something else than we
// know it to have was changed by others, was made anew under its old name, or is
// gone, and its addresses are free.
func (a addresses) Watch(ctx context.Context, wake func()) error {
	changes := a.opt.Services.Follow()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changes.C:
		}
		set, del, _ := changes.Take()
		if !a.foreign(set, del) {
			continue
		}
		wake()
		if err := pause(ctx, relistPause); err != nil {
			return err
		}
	}
}

func (a addresses) foreign(set map[lbpool.Key]lbpool.Service, del []lbpool.Key) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, row := range set {
		if a.held[key] != row.Held() {
			return true
		}
	}
	for _, key := range del {
		if a.held[key] != "" {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

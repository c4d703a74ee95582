package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// TestTakeoverWaits: no entry is set before what refuses stray packets is in
// place, and none stays because of that.
func TestTakeoverWaits(t *testing.T) {
	old, next := plan.NeighbourKey{Dev: "eth0", IP: netip.MustParseAddr("192.0.2.1")}, plan.NeighbourKey{Dev: "eth0", IP: netip.MustParseAddr("192.0.2.2")}
	kernel := reconcile.NewFake(map[plan.NeighbourKey]plan.Proxy{old: {}})
	missing := errors.New("the filter is not in place")
	x := takeover{kernel, nil, gratuitous.NewTeller(slog.New(slog.DiscardHandler), nl.Space{}), func(context.Context) error { return missing }}
	set := map[plan.NeighbourKey]plan.Proxy{next: {}}
	failed := x.Apply(t.Context(), set, []plan.NeighbourKey{old})
	if rows, _ := kernel.List(t.Context()); len(failed) != 1 || !errors.Is(failed[next], missing) || len(rows) != 0 {
		t.Errorf("failed %v, rows %v", failed, rows)
	}
	missing = nil
	failed = x.Apply(t.Context(), set, nil)
	if rows, _ := kernel.List(t.Context()); len(failed) != 0 || len(rows) != 1 {
		t.Errorf("failed %v, rows %v", failed, rows)
	}
}

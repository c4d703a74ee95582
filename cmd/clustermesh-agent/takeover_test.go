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
// place, but others are, and none stays because of that (invariant R4).
func TestTakeoverWaits(t *testing.T) {
	at := func(a string) plan.NeighbourKey {
		return plan.NeighbourKey{Dev: "eth0", IP: netip.MustParseAddr(a)}
	}
	old, late, next := at("192.0.2.1"), at("192.0.2.2"), at("192.0.2.3")
	kernel := reconcile.NewFake(map[plan.NeighbourKey]plan.Proxy{old: {}})
	missing := errors.New("the filter is not in place")
	ready := func(_ context.Context, a netip.Addr) error {
		if a == late.IP {
			return missing
		}
		return nil
	}
	x := takeover{kernel, nil, gratuitous.NewTeller(slog.New(slog.DiscardHandler), nl.Space{}), ready}
	failed := x.Apply(t.Context(), map[plan.NeighbourKey]plan.Proxy{late: {}, next: {}}, []plan.NeighbourKey{old})
	rows, _ := kernel.List(t.Context())
	if _, there := rows[next]; len(failed) != 1 || !errors.Is(failed[late], missing) || len(rows) != 1 || !there {
		t.Errorf("failed %v, rows %v", failed, rows)
	}
	missing = nil
	failed = x.Apply(t.Context(), map[plan.NeighbourKey]plan.Proxy{late: {}}, nil)
	if rows, _ := kernel.List(t.Context()); len(failed) != 0 || len(rows) != 2 {
		t.Errorf("failed %v, rows %v", failed, rows)
	}
}

package main

import (
	"testing"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// TestRest: rows of two kinds and two peers are held side by side, a list of one
// does not take the others away, and a row that is lost is missed.
func TestRest(t *testing.T) {
	ctx, r := t.Context(), newRest()
	sink := kvstore.ByKind(r.sinks())
	rows := func(kind wire.Kind, names ...string) []kvstore.Row {
		var out []kvstore.Row
		for _, n := range names {
			out = append(out, kvstore.Row{Key: wire.KindPrefix(kind) + n})
		}
		return out
	}
	list := func(names ...string) {
		t.Helper()
		err := sink.BeginList(ctx, kvstore.ListInfo{ClusterID: 1})
		for _, peer := range []string{"peer000", "peer001"} {
			for _, kind := range []wire.Kind{wire.KindIdentity, wire.KindEndpoint} {
				p := kvstore.Part{Group: peer, Kind: kind}
				for _, step := range []func() error{
					func() error { return sink.BeginPart(ctx, p, []byte{}) },
					func() error { return sink.Rows(ctx, p, rows(kind, names...)) },
					func() error { return sink.EndPart(ctx, p) },
				} {
					if err == nil {
						err = step()
					}
				}
			}
		}
		if err == nil {
			err = sink.EndList(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	list("default/1", "default/2", "default/3")
	if got := r.table.Len(); got != 12 {
		t.Fatalf("%d rows are held, want 12", got)
	}
	part := kvstore.Part{Group: "peer001", Kind: wire.KindEndpoint}
	if err := sink.Events(ctx, []kvstore.Event{{Part: part, Row: rows(part.Kind, "default/2")[0], Deleted: true}}); err != nil {
		t.Fatal(err)
	}
	if got := r.table.Len(); got != 11 {
		t.Errorf("%d rows are held after one has gone, want 11", got)
	}
	list("default/1")
	if got := r.table.Len(); got != 4 {
		t.Errorf("%d rows are held after a shorter list, want 4", got)
	}
}

package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

type rows = map[string]int

func TestDelta(t *testing.T) {
	tests := []struct {
		name           string
		actual, wanted rows
		set            rows
		del            []string
	}{
		{"nothing", nil, nil, rows{}, nil},
		{"equal", rows{"a": 1}, rows{"a": 1}, rows{}, nil},
		{"new, changed, gone", rows{"a": 1, "b": 2, "c": 3}, rows{"a": 1, "b": 9, "d": 4}, rows{"b": 9, "d": 4}, []string{"c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, del := Delta(tt.actual, tt.wanted)
			if !maps.Equal(set, tt.set) || !slices.Equal(del, tt.del) {
				t.Errorf("Delta = %v, %v; want %v, %v", set, del, tt.set, tt.del)
			}
		})
	}
}

// rig is a loop over a fake target, fed from one table, in virtual time.
type rig struct {
	table  *state.Table[string, int]
	target *Fake[string, int]
	board  *status.Board
	loop   *Loop[string, int]
}

// start runs a loop over a target that holds actual. The table expects reports of
// sources from the beginning: the loop may look at it before the test goes on.
func start(t *testing.T, actual rows, sources ...string) *rig {
	r := &rig{table: state.New[string, int](), target: NewFake(actual), board: status.NewBoard(time.Now)}
	r.table.Expect(sources...)
	r.loop = NewLoop("test", r.target, r.table.Snapshot, Options{Board: r.board}, r.table.Subscribe())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return r
}

func (r *rig) expect(t *testing.T, rows string, log ...string) {
	t.Helper()
	synctest.Wait()
	if got := r.target.String(); got != rows {
		t.Errorf("target holds %q, want %q", got, rows)
	}
	if got := r.target.TakeLog(); !slices.Equal(got, log) {
		t.Errorf("target was told %q, want %q", got, log)
	}
}

// TestRestart: a loop that finds what it wants touches nothing (invariant R1).
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, rows{"a": 1}, "src")
		r.table.Replace("src", rows{"a": 1})
		r.expect(t, "a=1")
	})
}

// TestOrphans: what nobody wants stays until every source has spoken, and new
// rows do not wait for that (invariant R2).
func TestOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, rows{"old": 1}, "one", "two")
		r.table.Replace("one", rows{"a": 1})
		r.expect(t, "a=1\nold=1", "set a=1")
		r.table.Replace("two", rows{"b": 2})
		r.expect(t, "a=1\nb=2", "set b=2", "del old")
	})
}

// TestAddBeforeDelete: a row that moves to another key is never missing
// (invariant R3).
func TestAddBeforeDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.table.Replace("src", rows{"via-a": 1})
		r.expect(t, "via-a=1", "set via-a=1")
		r.table.Replace("src", rows{"via-b": 1})
		r.expect(t, "via-b=1", "set via-b=1", "del via-a")
	})
}

// TestFailure: one bad row does not keep the others from their place, shows on
// the board, and is tried again until it works (invariant R4).
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.target.Refuse("bad", errors.New("no such device"))
		r.table.Replace("src", rows{"bad": 1, "good": 2})
		r.expect(t, "good=2", "set good=2")
		if got := r.board.Worst(); got != status.Degraded {
			t.Errorf("board says %v", got)
		}
		r.target.Refuse("bad", nil)
		time.Sleep(maxBackoff * 2)
		r.expect(t, "bad=1\ngood=2", "set bad=1")
		if got := r.board.Worst(); got != status.OK {
			t.Errorf("board says %v", got)
		}
	})
}

// TestMeddling: foreign edits are undone at the next full comparison
// (invariant R5).
func TestMeddling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.table.Replace("src", rows{"a": 1, "b": 2})
		r.expect(t, "a=1\nb=2", "set a=1", "set b=2")
		r.target.Edit(func(rows map[string]int) { delete(rows, "a"); rows["c"] = 3 })
		time.Sleep(2 * defaultResync)
		r.expect(t, "a=1\nb=2", "set a=1", "del c")
	})
}

// TestTargetDown: a target that can't be listed is asked again, for ever.
func TestTargetDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.target.Break(errors.New("connection refused"))
		r.table.Replace("src", rows{"a": 1})
		time.Sleep(time.Hour)
		r.expect(t, "")
		r.target.Break(nil)
		time.Sleep(2 * maxBackoff)
		r.expect(t, "a=1", "set a=1")
	})
}

// TestSync: Sync returns after a pass that saw what was wanted at the call, with its error.
func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.table.Replace("src", rows{"a": 1})
		if err := r.loop.Sync(t.Context()); err != nil {
			t.Errorf("Sync: %v", err)
		}
		r.expect(t, "a=1", "set a=1")
		bad := errors.New("table full")
		r.target.Refuse("b", bad)
		r.table.Update("src", rows{"b": 2}, nil)
		if err := r.loop.Sync(t.Context()); !errors.Is(err, bad) {
			t.Errorf("Sync: %v, want %v", err, bad)
		}
	})
}

// TestSyncRows: who waits for some rows is not held up by others that fail
// (invariant R4).
func TestSyncRows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.target.Refuse("bad", errors.New("no such device"))
		r.table.Replace("src", rows{"bad": 1, "good": 2})
		if err := r.loop.SyncRows(t.Context(), func(k string) bool { return k == "good" }); err != nil {
			t.Errorf("SyncRows of the good row: %v", err)
		}
		if err := r.loop.SyncRows(t.Context(), func(k string) bool { return k == "bad" }); err == nil {
			t.Error("SyncRows of the bad row: no error")
		}
		r.target.Break(errors.New("connection refused"))
		time.Sleep(2 * defaultResync)
		if err := r.loop.SyncRows(t.Context(), func(string) bool { return false }); err == nil {
			t.Error("SyncRows while the target can't be listed: no error")
		}
	})
}

// TestTableLoop: a loop that follows a table touches what changed, undoes what
// others did, and spares orphans until they may go (invariants R2, R4, R5).
func TestTableLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{table: state.New[string, int](), target: NewFake(rows{"old": 1, "older": 1}), board: status.NewBoard(time.Now)}
		var spared atomic.Pointer[map[string]bool]
		spare := func(keys ...string) {
			m := map[string]bool{}
			for _, k := range keys {
				m[k] = true
			}
			spared.Store(&m)
		}
		spare("old", "older", "a")
		grown := make(chan struct{}, 1)
		r.loop = NewTableLoop("test", r.target, r.table, func() Orphan[string] {
			now := *spared.Load()
			return func(k string) bool { return !now[k] }
		}, Options{Board: r.board}, grown)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.loop.Run(ctx) }()
		defer func() { cancel(); <-done }()
		r.table.Replace("src", rows{"a": 1})
		r.expect(t, "a=1\nold=1\nolder=1", "set a=1")
		r.table.Update("src", rows{"b": 2}, []string{"a"})
		r.expect(t, "a=1\nb=2\nold=1\nolder=1", "set b=2")
		r.table.Update("src", rows{"a": 1}, nil) // wanted again before it could go
		r.expect(t, "a=1\nb=2\nold=1\nolder=1")
		spare("older")
		grown <- struct{}{}
		r.expect(t, "a=1\nb=2\nolder=1", "del old")
		r.target.Edit(func(rows map[string]int) { delete(rows, "a"); rows["c"] = 3 })
		time.Sleep(2 * defaultResync)
		r.expect(t, "a=1\nb=2\nolder=1", "set a=1", "del c")
		r.target.Refuse("d", errors.New("no such device"))
		r.table.Update("src", rows{"d": 4, "e": 5}, []string{"b"})
		r.expect(t, "a=1\ne=5\nolder=1", "set e=5", "del b")
		r.target.Refuse("d", nil)
		spare()
		time.Sleep(2 * maxBackoff)
		r.expect(t, "a=1\nd=4\ne=5", "set d=4", "del older")
	})
}

// TestTableLoopJustSettled (invariant R2): rows may come, and with them the leave
// to delete others, while a pass has begun. It must not take the leave without
// having seen the rows.
func TestTableLoopJustSettled(t *testing.T) {
	for name, passes := range map[string]int{"in the pass that lists": 1, "in one that follows": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &rig{table: state.New[string, int](), target: NewFake(rows{"kept": 1, "old": 1})}
				calls := 0
				r.loop = NewTableLoop("test", r.target, r.table, func() Orphan[string] {
					if calls++; calls == passes {
						r.table.Replace("src", rows{"kept": 1})
					}
					settled := calls >= passes
					return func(string) bool { return settled }
				}, Options{})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- r.loop.Run(ctx) }()
				defer func() { cancel(); <-done }()
				synctest.Wait()
				r.loop.Wake()
				r.expect(t, "kept=1", "del old")
			})
		})
	}
}

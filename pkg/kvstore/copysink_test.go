package kvstore_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

const copyPrefix = "/clustermesh/mirror/v1/east/west/"

var nodes = kvstore.Part{Kind: wire.KindNode}

// admit refuses rows whose value begins with "bad".
func admit(_ kvstore.Part, rows []kvstore.Row) []kvstore.Row {
	return slices.DeleteFunc(rows, func(r kvstore.Row) bool { return strings.HasPrefix(string(r.Value), "bad") })
}

// copyList hands rows to a sink as a list of nodes.
func copyList(t *testing.T, s kvstore.Sink, synced []byte, pageRows int, rows map[string]string) {
	t.Helper()
	ctx := t.Context()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(s.BeginList(ctx, kvstore.ListInfo{}))
	do(s.BeginPart(ctx, nodes, synced))
	var page []kvstore.Row
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		if page = append(page, kvstore.Row{Key: k, Value: []byte(rows[k])}); len(page) == pageRows {
			do(s.Rows(ctx, nodes, page))
			page = nil
		}
	}
	if len(page) > 0 {
		do(s.Rows(ctx, nodes, page))
	}
	do(s.EndPart(ctx, nodes))
	do(s.EndList(ctx))
}

func set(key, value string) kvstore.Event {
	kind, _, _ := strings.Cut(key, "/")
	return kvstore.Event{Part: kvstore.Part{Kind: wire.Kind(kind)}, Row: kvstore.Row{Key: key, Value: []byte(value)}}
}

func del(key string) kvstore.Event {
	e := set(key, "")
	e.Deleted = true
	return e
}

type rows = map[string]string

func TestCopyList(t *testing.T) {
	m := etcdtest.New(t, "east")
	for _, tt := range []struct {
		name   string
		there  rows
		synced []byte
		list   rows
		want   rows
	}{
		{"into nothing", rows{}, []byte("m"), rows{"node/a": "1", "node/b": "2"}, rows{"node/a": "1", "node/b": "2", "synced/node": "m"}},
		{"without a mark", rows{"node/old": "0"}, nil, rows{"node/a": "1"}, rows{"node/old": "0", "node/a": "1"}},
		{"mark is kept without one", rows{"synced/node": "m"}, nil, rows{"node/a": "1"}, rows{"synced/node": "m", "node/a": "1"}},
		{"empty mark", rows{"node/old": "0"}, []byte{}, rows{}, rows{"synced/node": ""}},
		{"nothing", rows{"node/a": "0", "node/z": "0"}, []byte("m"), rows{}, rows{"synced/node": "m"}},
		{"other kinds", rows{"cluster": "c", "nodes/a": "x", "endpoint/x": "y"}, []byte("m"), rows{"node/a": "1"},
			rows{"cluster": "c", "nodes/a": "x", "endpoint/x": "y", "node/a": "1", "synced/node": "m"}},
		{"changed", rows{"node/a": "0", "node/b": "2", "node/bb": "0", "node/z": "0"}, []byte("m"), rows{"node/a": "1", "node/b": "2", "node/c": "3"},
			rows{"node/a": "1", "node/b": "2", "node/c": "3", "synced/node": "m"}},
		{"refused, new", rows{}, []byte("m"), rows{"node/a": "bad", "node/b": "2"}, rows{"node/b": "2", "synced/node": "m"}},
		{"refused, there", rows{"node/a": "1", "node/b": "2"}, []byte("m"), rows{"node/a": "bad", "node/b": "2"}, rows{"node/b": "2", "synced/node": "m"}},
		{"refused, there, without a mark", rows{"node/a": "1", "node/b": "2"}, nil, rows{"node/a": "bad"}, rows{"node/b": "2"}},
	} {
		for _, page := range []int{1, 2, 100} {
			t.Run(fmt.Sprintf("%s, pages of %d", tt.name, page), func(t *testing.T) {
				target := kvstore.NewTarget(m.Store.Client(), copyPrefix)
				if err := kvstore.DeletePrefix(t.Context(), m.Store.Client(), copyPrefix); err != nil {
					t.Fatal(err)
				}
				target.Apply(t.Context(), tt.there, nil)
				sink := kvstore.NewCopySink(m.Store.Client(), copyPrefix, kvstore.CopyOptions{Admit: admit, TxnOps: 2})
				copyList(t, sink, tt.synced, page, tt.list)
				if d := cmp.Diff(tt.want, m.Rows(copyPrefix)); d != "" {
					t.Errorf("rows, want - got +\n%s", d)
				}
				before := m.Store.Stats().Revision
				copyList(t, sink, tt.synced, page, tt.list) // doubled
				if after := m.Store.Stats().Revision; after != before {
					t.Errorf("the same list again wrote %d times", after-before)
				}
			})
		}
	}
}

func TestCopyEvents(t *testing.T) {
	m := etcdtest.New(t, "east")
	var gone []string
	sink := kvstore.NewCopySink(m.Store.Client(), copyPrefix, kvstore.CopyOptions{Admit: admit, TxnOps: 3,
		Gone: func(_ kvstore.Part, keys []string) { gone = append(gone, keys...) }})
	for _, tt := range []struct {
		name   string
		events []kvstore.Event
		want   rows
	}{
		{"sets", []kvstore.Event{set("node/b", "2"), set("cluster", "c"), set("node/a", "1")}, rows{"node/a": "1", "node/b": "2", "cluster": "c"}},
		{"set and delete", []kvstore.Event{set("node/a", "2"), del("node/a"), set("node/b", "3")}, rows{"node/b": "3", "cluster": "c"}},
		{"delete and set", []kvstore.Event{del("node/b"), set("node/b", "4"), set("node/b", "5")}, rows{"node/b": "5", "cluster": "c"}},
		{"delete what is not there", []kvstore.Event{del("node/x")}, rows{"node/b": "5", "cluster": "c"}},
		{"refused", []kvstore.Event{set("node/b", "bad"), set("node/c", "bad"), set("node/d", "6")}, rows{"node/d": "6", "cluster": "c"}},
		{"good again", []kvstore.Event{set("node/b", "7"), del("cluster")}, rows{"node/b": "7", "node/d": "6"}},
		{"more than a transaction", []kvstore.Event{set("node/1", "1"), set("node/2", "1"), set("node/3", "1"), set("node/4", "1"), del("node/b"), del("node/d")},
			rows{"node/1": "1", "node/2": "1", "node/3": "1", "node/4": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // doubled
				if err := sink.Events(t.Context(), tt.events); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(tt.want, m.Rows(copyPrefix)); d != "" {
					t.Errorf("rows, want - got +\n%s", d)
				}
			}
		})
	}
	if want := "node/a node/a node/x node/x"; strings.Join(gone[:4], " ") != want {
		t.Errorf("gone %v, want %s first", gone, want)
	}
}

// TestCopyDestinationFails takes the destination away under a running copy.
func TestCopyDestinationFails(t *testing.T) {
	src, dest := etcdtest.New(t, "west"), etcdtest.New(t, "east")
	src.Put(west+"node/a", "1", west+"synced/node", "m")
	broken := &breaker{Sink: kvstore.NewCopySink(dest.Store.Client(), copyPrefix, kvstore.CopyOptions{})}
	r := read(t, src, broken)
	want := func(want rows) {
		t.Helper()
		etcdtest.Eventually(t, "copy is complete", func() bool { return maps.Equal(dest.Rows(copyPrefix), want) })
	}
	want(rows{"node/a": "1", "synced/node": "m"})
	broken.ctx = true
	src.Put(west+"node/a", "2", west+"node/b", "3")
	want(rows{"node/a": "2", "node/b": "3", "synced/node": "m"})
	lists(t, r, 2)
}

// breaker lets one batch of events go with a context that has ended, so that
// the write fails after the rows were taken.
type breaker struct {
	kvstore.Sink
	ctx bool
}

func (b *breaker) Events(ctx context.Context, events []kvstore.Event) error {
	if b.ctx {
		b.ctx = false
		dead, cancel := context.WithCancel(ctx)
		cancel()
		ctx = dead
	}
	return b.Sink.Events(ctx, events)
}

// TestMirrorRandomly changes a source at random, with restarts and relists in
// between, and compares the copy in the end.
func TestMirrorRandomly(t *testing.T) {
	src, dest := etcdtest.New(t, "west"), etcdtest.New(t, "east")
	src.Put(west+"synced/node", "m", west+"synced/identity", "m")
	r := read(t, src, kvstore.NewCopySink(dest.Store.Client(), copyPrefix, kvstore.CopyOptions{Admit: admit, TxnOps: 5}))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for step := range 400 {
		key := fmt.Sprintf("%s/n%d", []string{"node", "identity/d"}[rng.IntN(2)], rng.IntN(30))
		value := fmt.Sprint([]string{"v", "bad"}[rng.IntN(5)/4], step)
		if rng.IntN(4) == 0 {
			value = ""
		}
		src.Put(west+key, value)
		switch step {
		case 100:
			r.Relist()
		case 200:
			src.Stop()
			src.Start()
		}
	}
	want := rows{"synced/node": "m", "synced/identity": "m"}
	for k, v := range src.Rows(west) {
		if !strings.HasPrefix(v, "bad") {
			want[k] = v
		}
	}
	etcdtest.Eventually(t, "copy is complete", func() bool { return maps.Equal(dest.Rows(copyPrefix), want) })
	if got, err := kvstore.Counts(t.Context(), dest.Store.Client(), copyPrefix); err != nil || got[wire.KindSynced] != 2 || got[wire.KindNode]+got[wire.KindIdentity] != len(want)-2 {
		t.Errorf("counts %v, %v, want %d rows", got, err, len(want)-2)
	}
}

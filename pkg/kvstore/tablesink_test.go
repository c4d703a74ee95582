package kvstore_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// tableRig is a sink on a table, with what it refuses.
type tableRig struct {
	table   *state.Table[model.NodeKey, string]
	sink    kvstore.Sink
	refused map[string]bool
}

func newTableRig() *tableRig {
	r := &tableRig{table: state.New[model.NodeKey, string](), refused: map[string]bool{}}
	r.sink = kvstore.ByKind(map[wire.Kind]kvstore.Sink{wire.KindNode: kvstore.NewTableSink(r.table, kvstore.TableOptions[model.NodeKey, string]{
		Source: func(group string) string { return "mirror/" + group },
		Key: func(group, key string) (model.NodeKey, error) {
			name := strings.TrimPrefix(key, "node/")
			if name == "" {
				return model.NodeKey{}, errors.New("no name")
			}
			return model.NodeKey{Cluster: group, Name: name}, nil
		},
		Decode: func(_, _ string, value []byte) (string, error) {
			if string(value) == "bad" {
				return "", errors.New("bad")
			}
			return string(value), nil
		},
		Refused: func(group, key string, err error) {
			if delete(r.refused, group+" "+key); err != nil {
				r.refused[group+" "+key] = true
			}
		},
	})})
	return r
}

func (r *tableRig) String() string {
	var out []string
	for k, v := range r.table.Rows() {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
	}
	slices.Sort(out)
	for k := range r.refused {
		out = append(out, "refused "+k)
	}
	return strings.Join(out, ", ")
}

type groupList struct {
	group  string
	synced bool
	rows   [][2]string
}

func (r *tableRig) list(t *testing.T, cluster uint64, groups ...groupList) {
	t.Helper()
	ctx := t.Context()
	err := r.sink.BeginList(ctx, kvstore.ListInfo{ClusterID: cluster})
	for _, g := range groups {
		p := kvstore.Part{Group: g.group, Kind: wire.KindNode}
		var mark []byte
		if g.synced {
			mark = []byte{}
		}
		err = errors.Join(err, r.sink.BeginPart(ctx, p, mark))
		for _, row := range g.rows {
			err = errors.Join(err, r.sink.Rows(ctx, p, []kvstore.Row{{Key: row[0], Value: []byte(row[1])}}))
		}
		err = errors.Join(err, r.sink.EndPart(ctx, p))
	}
	if err = errors.Join(err, r.sink.EndList(ctx)); err != nil {
		t.Fatal(err)
	}
}

func TestTableSink(t *testing.T) {
	in := func(group string, e kvstore.Event) kvstore.Event { e.Part.Group = group; return e }
	east := func(synced bool, rows ...[2]string) groupList { return groupList{"east", synced, rows} }
	rig := newTableRig()
	rig.table.Expect("mirror/east")
	// The steps build on one another.
	for _, step := range []struct {
		name   string
		do     func(t *testing.T, r *tableRig)
		want   string
		synced bool
	}{
		{"list without a mark", func(t *testing.T, r *tableRig) { r.list(t, 1, east(false, [2]string{"node/a", "1"})) }, "east/a=1", false},
		{"list with a mark", func(t *testing.T, r *tableRig) { r.list(t, 1, east(true, [2]string{"node/b", "2"})) }, "east/b=2", true},
		{"another store, without a mark", func(t *testing.T, r *tableRig) { r.list(t, 2, east(false, [2]string{"node/c", "3"})) }, "east/b=2, east/c=3", true},
		{"another store, without the group", func(t *testing.T, r *tableRig) { r.list(t, 3) }, "east/b=2, east/c=3", true},
		{"back", func(t *testing.T, r *tableRig) { r.list(t, 3, east(true, [2]string{"node/b", "2"})) }, "east/b=2", true},
		{"bad row", func(t *testing.T, r *tableRig) {
			r.list(t, 3, east(true, [2]string{"node/b", "bad"}, [2]string{"node/c", "3"}))
		}, "east/c=3, refused east node/b", true},
		{"bad rows without a mark", func(t *testing.T, r *tableRig) { r.list(t, 3, east(false, [2]string{"node/c", "bad"})) }, "refused east node/c", true},
		{"events", func(t *testing.T, r *tableRig) {
			r.events(t, in("east", set("node/c", "4")), in("east", set("node/d", "5")), in("north", set("node/d", "6")), in("east", del("node/d")))
		}, "east/c=4, north/d=6", true},
		{"last event counts", func(t *testing.T, r *tableRig) {
			r.events(t, in("east", del("node/c")), in("east", set("node/c", "7")), in("east", set("node/e", "8")), in("east", set("node/e", "bad")))
		}, "east/c=7, north/d=6, refused east node/e", true},
		{"refused row goes", func(t *testing.T, r *tableRig) { r.events(t, in("east", del("node/e"))) }, "east/c=7, north/d=6", true},
		{"key that is none", func(t *testing.T, r *tableRig) { r.events(t, in("east", set("node/", "x"))) }, "east/c=7, north/d=6, refused east node/", true},
		{"group was removed", func(t *testing.T, r *tableRig) { r.list(t, 3, groupList{"north", true, [][2]string{{"node/d", "6"}}}) }, "north/d=6", true},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do(t, rig)
			if got := rig.String(); got != step.want {
				t.Errorf("table %s, want %s", got, step.want)
			}
			if got := rig.table.Synced(); got != step.synced {
				t.Errorf("synced %v, want %v", got, step.synced)
			}
		})
	}
}

func (r *tableRig) events(t *testing.T, events ...kvstore.Event) {
	t.Helper()
	if err := r.sink.Events(t.Context(), events); err != nil {
		t.Fatal(err)
	}
}

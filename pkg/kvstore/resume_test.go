package kvstore_test

import (
	"context"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// TestResumeAfterRestart ends a copying process and starts another one on the
// same copy, with something happening in between.
func TestResumeAfterRestart(t *testing.T) {
	for _, tt := range []struct {
		name    string
		between func(t *testing.T, src, dest *etcdtest.Mesh)
		tag     string
		lists   int
	}{
		{"nothing", func(*testing.T, *etcdtest.Mesh, *etcdtest.Mesh) {}, "rules1", 0},
		{"source restarted", func(_ *testing.T, src, _ *etcdtest.Mesh) { src.Stop(); src.Start() }, "rules1", 0},
		{"own store restarted", func(_ *testing.T, _, dest *etcdtest.Mesh) { dest.Stop(); dest.Start() }, "rules1", 0},
		{"other rules", func(*testing.T, *etcdtest.Mesh, *etcdtest.Mesh) {}, "rules2", 1},
		{"source wiped", func(_ *testing.T, src, _ *etcdtest.Mesh) {
			src.Stop()
			src.Wipe()
			src.Start()
			src.Put(west+"synced/node", "m", west+"node/kept", "1")
		}, "rules1", 1},
		{"copy deleted", func(t *testing.T, _, dest *etcdtest.Mesh) {
			if err := kvstore.DeletePrefix(t.Context(), dest.Store.Client(), "/clustermesh/mirror/v1/east/"); err != nil {
				t.Fatal(err)
			}
		}, "rules1", 1},
		{"history gone", func(t *testing.T, src, _ *etcdtest.Mesh) {
			src.Put(west+"node/x", "1", west+"node/x", "")
			if _, err := src.Store.Client().Compact(t.Context(), src.Store.Stats().Revision); err != nil {
				t.Fatal(err)
			}
		}, "rules1", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, dest := etcdtest.New(t, "west"), etcdtest.New(t, "east")
			cert := src.Peer("east")
			src.Put(west+"node/kept", "1", west+"node/old", "2", west+"node/refused", "bad", west+"identity/d/1", "i", west+"synced/node", "m")
			_, stop := copyUntil(t, src.Dial(cert), src, dest, "rules1")
			etcdtest.Eventually(t, "copied", func() bool {
				return maps.Equal(dest.Rows(copyPrefix), rows{"node/kept": "1", "node/old": "2", "identity/d/1": "i", "synced/node": "m"})
			})
			src.Put(west+"node/more", "3")
			etcdtest.Eventually(t, "followed", func() bool { return dest.Rows(copyPrefix)["node/more"] == "3" })
			stop()

			tt.between(t, src, dest)
			src.Put(west+"node/old", "", west+"node/more", "", west+"node/new", "4")
			again, _ := copyUntil(t, src.Dial(cert), src, dest, tt.tag)
			want := rows{"node/kept": "1", "node/new": "4", "identity/d/1": "i", "synced/node": "m"}
			etcdtest.Eventually(t, "caught up", func() bool { return maps.Equal(dest.Rows(copyPrefix), want) })
			lists(t, again.reader, tt.lists)
			if got := again.admitted(); tt.lists == 0 && got != "node/kept node/more node/old" {
				t.Errorf("admission was given %q before the changes", got)
			}
		})
	}
}

type copying struct {
	reader *kvstore.Reader
	mu     sync.Mutex
	first  []string // keys of the first page of nodes that admission saw
}

func (c *copying) admitted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.first, " ")
}

// copyUntil copies src to dest until stop is called, or the test ends.
func copyUntil(t *testing.T, dial kvstore.Dial, src, dest *etcdtest.Mesh, tag string) (c *copying, stop func()) {
	c = &copying{}
	sink := kvstore.NewCopySink(dest.Store.Client(), copyPrefix, kvstore.CopyOptions{Tag: tag,
		Admit: func(p kvstore.Part, rows []kvstore.Row) []kvstore.Row {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.first == nil && p.Kind == wire.KindNode {
				for _, r := range rows {
					c.first = append(c.first, r.Key)
				}
			}
			return admit(p, rows)
		}})
	addr := src.Addr
	c.reader = kvstore.NewReader(dial, func() []string { return []string{addr} }, sink, kvstore.ReaderOptions{
		Prefix: west, Kinds: []wire.Kind{wire.KindNode, wire.KindIdentity}, Resume: []wire.Kind{wire.KindNode}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.reader.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return c, stop
}

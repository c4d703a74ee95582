package export_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/export"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// cluster is what an Export is given.
type cluster struct {
	mu       sync.Mutex
	nodes    map[model.NodeKey]model.Node // guarded by mu
	complete bool                         // guarded by mu
	wake     chan struct{}
}

func (c *cluster) input() (plan.ExportInput, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return plan.ExportInput{Cluster: wire.Cluster{Name: "east", Incarnation: "1"}, Nodes: maps.Clone(c.nodes)}, c.complete
}

func (c *cluster) set(complete bool, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.complete, c.nodes = complete, map[model.NodeKey]model.Node{}
	for i, name := range names {
		k := model.NodeKey{Cluster: "east", Name: name}
		c.nodes[k] = model.Node{Key: k, Internal: model.Addrs{V4: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))}}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func start(t *testing.T, m *etcdtest.Mesh, c *cluster) (e *export.Export, stop func()) {
	e = export.New(export.Options{Cluster: "east", Store: m.Store.Client(), Input: c.input, Wakes: []<-chan struct{}{c.wake}, Services: state.New[string, string](), Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return e, stop
}

// published is the export's keys, marks as one.
func published(m *etcdtest.Mesh) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m.Rows(wire.ExportPrefix("east")))) {
		if strings.HasPrefix(k, "synced/") {
			k = "synced"
		}
		out = append(out, k)
	}
	return slices.Compact(out)
}

func want(t *testing.T, m *etcdtest.Mesh, keys ...string) {
	t.Helper()
	var last []string
	for deadline := time.Now().Add(15 * time.Second); !slices.Equal(last, keys); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(cmp.Diff(keys, last))
		}
		last = published(m)
	}
}

func TestExport(t *testing.T) {
	m := etcdtest.New(t, "east")
	c := &cluster{wake: make(chan struct{}, 1)}
	c.set(false, "n1")
	e, stop := start(t, m, c)
	want(t, m, "cluster", "node/n1") // neither marks nor a heartbeat before all is known
	select {
	case <-e.Ready():
		t.Fatal("ready before all is known")
	default:
	}
	c.set(true, "n1", "n2")
	<-e.Ready()
	want(t, m, "cluster", "heartbeat", "node/n1", "node/n2", "synced")
	c.set(true, "n2")
	want(t, m, "cluster", "heartbeat", "node/n2", "synced")

	// A restart: until all is known nothing is withdrawn, marks least of all, and
	// the heart beats on.
	stop()
	before := m.Rows(wire.ExportPrefix("east"))
	changes := m.Store.Client().Watch(t.Context(), wire.ExportPrefix("east")+"synced/", clientv3.WithPrefix())
	c.set(false)
	e, _ = start(t, m, c)
	etcdtest.Eventually(t, "the heart beats", func() bool { return m.Rows(wire.ExportPrefix("east"))["heartbeat"] != before["heartbeat"] })
	want(t, m, "cluster", "heartbeat", "node/n2", "synced")
	c.set(true, "n3")
	<-e.Ready()
	want(t, m, "cluster", "heartbeat", "node/n3", "synced")
	m.Put(wire.ExportPrefix("east")+"synced/zz", "end of test")
	for resp := range changes {
		for _, ev := range resp.Events {
			if string(ev.Kv.Value) == "end of test" {
				return
			}
			if ev.Type.String() == "DELETE" {
				t.Errorf("%s was deleted by a restart", ev.Kv.Key)
			}
		}
	}
}

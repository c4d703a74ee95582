package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

var _ reconcile.Target[string, string] = (*kvstore.Target)(nil)

func TestTarget(t *testing.T) {
	m := etcdtest.New(t, "west")
	target := kvstore.NewTarget(m.Store.Client(), west)
	m.Put("/clustermesh/v1/west0/node/a", "not ours")
	many := rows{}
	for i := range 1500 {
		many[fmt.Sprintf("node/n%04d", i)] = "x"
	}
	big := rows{}
	for i := range 8 {
		big[fmt.Sprintf("node/big%d", i)] = strings.Repeat("b", 200<<10)
	}
	apply := func(set rows, del ...string) {
		t.Helper()
		if failed := target.Apply(t.Context(), set, del); len(failed) > 0 {
			t.Fatal(failed)
		}
	}
	want := func(want rows) {
		t.Helper()
		got, err := target.List(t.Context())
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%v, want - got +\n%s", err, d)
		}
	}
	want(rows{})
	apply(rows{"cluster": "c", "node/a": "1"}, "node/x")
	apply(rows{"node/a": "2"}, "cluster")
	want(rows{"node/a": "2"})
	apply(many)
	apply(rows{}, "node/a")
	want(many)
	if err := kvstore.DeletePrefix(t.Context(), m.Store.Client(), west); err != nil {
		t.Fatal(err)
	}
	apply(big) // more than one request may hold
	want(big)
	if got := m.Rows("/clustermesh/v1/west0/"); len(got) != 1 {
		t.Errorf("foreign rows %v", got)
	}
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	if failed := target.Apply(dead, rows{"a": "1", "b": "2"}, []string{"c"}); len(failed) != 3 || !errors.Is(failed["a"], context.Canceled) {
		t.Errorf("failed %v, want three rows", failed)
	}
}

// TestTooLarge reports a row that etcd refuses, and writes the others.
func TestTooLarge(t *testing.T) {
	m := etcdtest.New(t, "west")
	target := kvstore.NewTarget(m.Store.Client(), west)
	failed := target.Apply(t.Context(), rows{"node/a": "1", "node/huge": strings.Repeat("x", 2<<20), "node/z": "2"}, nil)
	if len(failed) != 1 || failed["node/huge"] == nil {
		t.Errorf("failed rows: %v", failed)
	}
	if d := cmp.Diff(rows{"node/a": "1", "node/z": "2"}, m.Rows(west)); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
}

func TestHeartbeat(t *testing.T) {
	m := etcdtest.New(t, "west")
	c := m.Store.Client()
	key := west + "heartbeat"
	n := 0
	hb := kvstore.NewHeartbeat(c, key, func() string { n++; return fmt.Sprint(n) }, kvstore.HeartbeatOptions{Interval: 20 * time.Millisecond, TTL: 5 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = hb.Run(ctx) })
	defer wg.Wait()
	defer cancel()

	lease := func() (l clientv3.LeaseID, value string) {
		resp := etcdtest.Must(c.Get(t.Context(), key))(t)
		if len(resp.Kvs) == 0 {
			return 0, ""
		}
		return clientv3.LeaseID(resp.Kvs[0].Lease), string(resp.Kvs[0].Value)
	}
	var first clientv3.LeaseID
	etcdtest.Eventually(t, "it beats", func() bool { l, v := lease(); first = l; return l != 0 && v > "1" })
	if _, err := c.Revoke(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, "it beats under a new lease", func() bool { l, _ := lease(); return l != 0 && l != first })
	cancel()
	wg.Wait()
	if l, _ := lease(); l == 0 {
		t.Error("the row went with its writer, not with its lease")
	}
}

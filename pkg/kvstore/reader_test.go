package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

const west = "/clustermesh/v1/west/"

// recorder is a sink that keeps the rows, obeys the marks, and writes down calls.
type recorder struct {
	mu    sync.Mutex
	rows  map[string]string // group/key → value
	calls []string
	seen  map[string]bool
	fail  error // of the next call
	keep  bool  // of the part: it has no mark
}

func newRecorder() *recorder { return &recorder{rows: map[string]string{}} }

func (r *recorder) do(call string, f func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fail; err != nil {
		r.fail = nil
		r.calls = append(r.calls, "fail "+call)
		return err
	}
	r.calls = append(r.calls, call)
	if f != nil {
		f()
	}
	return nil
}

func (r *recorder) BeginList(_ context.Context, l kvstore.ListInfo) error {
	return r.do("list", nil)
}

func (r *recorder) BeginPart(_ context.Context, p kvstore.Part, synced []byte) error {
	return r.do(fmt.Sprintf("part %s %v", base(p)+string(p.Kind), synced != nil), func() { r.seen, r.keep = map[string]bool{}, synced == nil })
}

func base(p kvstore.Part) string {
	if p.Group == "" {
		return ""
	}
	return p.Group + "/"
}

func (r *recorder) Rows(_ context.Context, p kvstore.Part, rows []kvstore.Row) error {
	return r.do(fmt.Sprintf("rows %d", len(rows)), func() {
		for _, row := range rows {
			r.rows[base(p)+row.Key] = string(row.Value)
			r.seen[base(p)+row.Key] = true
		}
	})
}

func (r *recorder) EndPart(_ context.Context, p kvstore.Part) error {
	return r.do("end", func() {
		maps.DeleteFunc(r.rows, func(k, _ string) bool {
			return !r.keep && !r.seen[k] && strings.HasPrefix(k, base(p)+wire.KindPrefix(p.Kind))
		})
	})
}

func (r *recorder) EndList(context.Context) error { return r.do("listed", nil) }

func (r *recorder) Events(_ context.Context, events []kvstore.Event) error {
	return r.do(fmt.Sprintf("events %d", len(events)), func() {
		for _, e := range events {
			if e.Deleted {
				delete(r.rows, base(e.Part)+e.Key)
			} else {
				r.rows[base(e.Part)+e.Key] = string(e.Value)
			}
		}
	})
}

func (r *recorder) failNext(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// is tells whether the rows are these: key, value, key, value, …
func (r *recorder) is(kv ...string) bool { return r.String() == rowsOf(kv...) }

func rowsOf(kv ...string) string {
	var lines []string
	for i := 0; i < len(kv); i += 2 {
		lines = append(lines, kv[i]+"="+kv[i+1])
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var kv []string
	for k, v := range r.rows {
		kv = append(kv, k, v)
	}
	return rowsOf(kv...)
}

func (r *recorder) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.calls, ", ")
}

// run runs a reader until the test ends.
func run(t *testing.T, r *kvstore.Reader) *kvstore.Reader {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("reader ended: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

// read runs a reader of m's exports as its peer east, and waits for its first list.
func read(t *testing.T, m *etcdtest.Mesh, sink kvstore.Sink, more ...string) *kvstore.Reader {
	t.Helper()
	dial, addr := m.Dial(m.Peer("east")), m.Addr
	r := run(t, kvstore.NewReader(dial, func() []string { return append([]string{addr}, more...) }, sink,
		kvstore.ReaderOptions{Prefix: west, PageRows: 2, Kinds: []wire.Kind{wire.KindCluster, wire.KindNode, wire.KindIdentity}}))
	lists(t, r, 1)
	return r
}

// lists waits until a reader has listed n times, and not more.
func lists(t *testing.T, r *kvstore.Reader, n int) {
	t.Helper()
	etcdtest.Eventually(t, fmt.Sprintf("%d lists", n), func() bool { return r.State().Lists >= n })
	if got := r.State().Lists; got != n {
		t.Errorf("%d lists, want %d", got, n)
	}
}

func eventually(t *testing.T, rec *recorder, kv ...string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("rows %s, want %s; calls %s", rec, rowsOf(kv...), rec.log())
		}
	}()
	etcdtest.Eventually(t, "rows are "+rowsOf(kv...), func() bool { return rec.is(kv...) })
}

func TestListAndFollow(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"identity/d/1", "i", west+"node/a", "1", west+"node/b", "2", west+"node/c", "3", west+"cluster", "c",
		west+"synced/node", "", west+"synced/node", "yes", west+"unknown/x", "u", west+"clusterx", "no", "/clustermesh/v1/west0/node/z", "no")
	rec := newRecorder()
	r := read(t, m, rec)
	eventually(t, rec, "cluster", "c", "node/a", "1", "node/b", "2", "node/c", "3", "identity/d/1", "i")
	want := "list, part cluster false, rows 1, end, part node true, rows 2, rows 1, end, part identity false, rows 1, end, listed"
	if got := rec.log(); got != want {
		t.Errorf("calls\n%s, want\n%s", got, want)
	}
	m.Put(west+"node/b", "", west+"node/d", "4", west+"cluster", "c2", west+"unknown/x", "u2", west+"synced/node", "again")
	eventually(t, rec, "cluster", "c2", "node/a", "1", "node/c", "3", "node/d", "4", "identity/d/1", "i")
	if s := r.State(); !s.Connected || !s.Synced || s.Lists != 1 || s.Error != "" || s.ClusterID != m.Store.ClusterID() || s.Endpoint != m.Addr {
		t.Errorf("state %+v", s)
	}
}

// TestMarkComesLater lists a part again, alone, when its source vouches for it.
func TestMarkComesLater(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1", west+"identity/d/1", "i")
	rec := newRecorder()
	rec.rows["node/old"] = "kept from before"
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1", "node/old", "kept from before", "identity/d/1", "i")
	m.Put(west+"node/b", "2", west+"synced/node", "yes")
	eventually(t, rec, "node/a", "1", "node/b", "2", "identity/d/1", "i")
	m.Put(west+"node/b", "3", west+"node/c", "4", west+"node/a", "")
	eventually(t, rec, "node/b", "3", "node/c", "4", "identity/d/1", "i")
	if s := r.State(); s.Lists != 1 {
		t.Errorf("%d full lists, want 1", s.Lists)
	}
}

// TestResume goes on where it was after the server was away.
func TestResume(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1")
	rec := newRecorder()
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1")
	m.Stop()
	etcdtest.Eventually(t, "reader notices", func() bool { s := r.State(); return !s.Connected && s.Error != "" })
	if !rec.is("node/a", "1") {
		t.Error("rows were lost with the connection")
	}
	m.Start()
	m.Put(west+"node/b", "2", west+"node/a", "")
	eventually(t, rec, "node/b", "2")
	if s := r.State(); s.Lists != 1 {
		t.Errorf("%d lists, want 1; calls %s", s.Lists, rec.log())
	}
}

// TestCompacted lists again when the history that it missed is gone.
func TestCompacted(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1", west+"synced/node", "yes")
	rec := newRecorder()
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1")
	m.Stop()
	etcdtest.Eventually(t, "reader notices", func() bool { return !r.State().Connected })
	addr := m.Addr
	m.Addr = "" // come back unseen first, so that there is a gap
	m.Start()
	m.Put(west+"node/a", "", west+"node/b", "2", west+"node/b", "3")
	if _, err := m.Store.Client().Compact(t.Context(), m.Store.Stats().Revision); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	m.Addr = addr
	m.Start()
	eventually(t, rec, "node/b", "3")
	lists(t, r, 2)
}

// TestWiped replaces the server's store by an empty one: rows are kept until
// the new one vouches for what it has.
func TestWiped(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1", west+"node/b", "2", west+"synced/node", "yes")
	rec := newRecorder()
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1", "node/b", "2")
	m.Stop()
	m.Wipe()
	m.Start()
	lists(t, r, 2)
	if !rec.is("node/a", "1", "node/b", "2") {
		t.Errorf("rows %s after listing an empty store without a mark", rec)
	}
	m.Put(west+"node/b", "3")
	eventually(t, rec, "node/a", "1", "node/b", "3")
	m.Put(west+"synced/node", "yes")
	eventually(t, rec, "node/b", "3")
}

// TestFailover moves to a replica with a store of its own.
func TestFailover(t *testing.T) {
	a, b := etcdtest.New(t, "west"), etcdtest.New(t, "west")
	b.ShareTrust(a)
	for range 20 {
		b.Put(west+"node/x", "x") // far ahead, as replicas do not count alike
	}
	a.Put(west+"node/x", "x", west+"node/old", "1", west+"synced/node", "yes")
	b.Put(west+"synced/node", "yes")
	rec := newRecorder()
	r := read(t, a, rec, b.Addr)
	eventually(t, rec, "node/x", "x", "node/old", "1")
	a.Stop()
	eventually(t, rec, "node/x", "x")
	etcdtest.Eventually(t, "state names the replica", func() bool {
		s := r.State()
		return s.Endpoint == b.Addr && s.ClusterID == b.Store.ClusterID() && s.Lists == 2
	})
}

func TestEndpointWithdrawn(t *testing.T) {
	a := etcdtest.New(t, "west")
	a.Put(west+"node/x", "x")
	var mu sync.Mutex
	endpoints := []string{"127.0.0.1:1", a.Addr}
	rec := newRecorder()
	r := run(t, kvstore.NewReader(a.Dial(a.Peer("east")), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return endpoints
	}, rec, kvstore.ReaderOptions{Prefix: west}))
	eventually(t, rec, "node/x", "x")
	mu.Lock()
	endpoints = nil
	mu.Unlock()
	etcdtest.Eventually(t, "reader leaves the endpoint", func() bool { return !r.State().Connected })
	etcdtest.Eventually(t, "reader says why", func() bool { return r.State().Error == "no endpoint is known" })
	if !rec.is("node/x", "x") {
		t.Error("rows were lost")
	}
}

// TestLikelyEndpointTold: of endpoints that all fail, the first one is told of; the
// others are guesses.
func TestLikelyEndpointTold(t *testing.T) {
	a := etcdtest.New(t, "west")
	const first, guess = "127.0.0.1:1", "127.0.0.1:2"
	r := run(t, kvstore.NewReader(a.Dial(a.Peer("east")), func() []string { return []string{first, guess} }, newRecorder(), kvstore.ReaderOptions{Prefix: west}))
	etcdtest.Eventually(t, "the reader says why", func() bool { return r.State().Error != "" })
	for range 100 {
		time.Sleep(5 * time.Millisecond) // several rounds
		if s := r.State(); s.Endpoint != first || !strings.Contains(s.Error, first) || strings.Contains(s.Error, guess) {
			t.Fatalf("endpoint %s: %s; want %s", s.Endpoint, s.Error, first)
		}
	}
}

// TestSinkFails makes the sink refuse each of its calls once.
func TestSinkFails(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1", west+"synced/node", "yes")
	rec := newRecorder()
	rec.fail = errors.New("disk full")
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1")
	rec.failNext(errors.New("disk full"))
	m.Put(west+"node/a", "2", west+"node/b", "3")
	eventually(t, rec, "node/a", "2", "node/b", "3")
	etcdtest.Eventually(t, "error is gone", func() bool { s := r.State(); return s.Error == "" && s.Connected })
	lists(t, r, 2)
}

func TestRelist(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1")
	rec := newRecorder()
	r := read(t, m, rec)
	eventually(t, rec, "node/a", "1")
	r.Relist()
	lists(t, r, 2)
	m.Put(west+"node/b", "2")
	eventually(t, rec, "node/a", "1", "node/b", "2")
}

// TestGrouped reads a mirror, as agents do.
func TestGrouped(t *testing.T) {
	const mirror = "/clustermesh/mirror/v1/west/"
	m := etcdtest.New(t, "west")
	m.Put(mirror+"east/node/a", "1", mirror+"east/synced/node", "y", mirror+"east0/node/a", "2", mirror+"east-1/cluster", "3", mirror+"odd", "x")
	rec := newRecorder()
	rec.rows["east/node/old"], rec.rows["east0/node/old"] = "gone", "kept"
	run(t, kvstore.NewReader(m.Dial(m.Agent()), func() []string { return []string{m.Addr} }, rec,
		kvstore.ReaderOptions{Prefix: mirror, Grouped: true, Kinds: []wire.Kind{wire.KindCluster, wire.KindNode}}))
	eventually(t, rec, "east/node/a", "1", "east0/node/a", "2", "east0/node/old", "kept", "east-1/cluster", "3")
	m.Put(mirror+"south/node/a", "4", mirror+"south/synced/node", "y", mirror+"east0/synced/node", "y", mirror+"east/node/a", "")
	eventually(t, rec, "east0/node/a", "2", "east-1/cluster", "3", "south/node/a", "4")
	if got := rec.log(); !strings.Contains(got, "part south/node true") {
		t.Errorf("the new group was not listed: %s", got)
	}
}

// TestBurst changes rows faster than the sink takes them in.
func TestBurst(t *testing.T) {
	m := etcdtest.New(t, "west")
	rec := newRecorder()
	read(t, m, rec)
	rows := map[string]string{}
	var want []string
	for i := range 5000 {
		rows[fmt.Sprintf("node/n%d", i)] = "x"
		want = append(want, fmt.Sprintf("node/n%d", i), "x")
	}
	if failed := kvstore.NewTarget(m.Store.Client(), west).Apply(t.Context(), rows, nil); len(failed) > 0 {
		t.Fatal(failed)
	}
	etcdtest.Eventually(t, "all rows", func() bool { return rec.is(want...) })
}

// liar is a source that answers with keys that were not asked for.
type liar struct {
	kvstoreRanger
	key string
}

type kvstoreRanger interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
}

func (l liar) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := l.kvstoreRanger.Range(ctx, req)
	if err == nil && len(resp.Kvs) > 0 && !req.KeysOnly {
		resp.Kvs[0].Key = []byte(l.key)
	}
	return resp, err
}

func TestLyingSource(t *testing.T) {
	for name, key := range map[string]string{
		"outside":      "/clustermesh/v1/north/node/a",
		"short":        "/",
		"empty":        "",
		"other kind":   west + "zebra/a",
		"out of order": west + "node/zz",
	} {
		t.Run(name, func(t *testing.T) {
			m := etcdtest.New(t, "west")
			m.Put(west+"node/a", "1", west+"node/b", "2")
			b := m.Store.Backend()
			b.KV = liar{b.KV, key}
			addr := m.Serve(b)
			rec := newRecorder()
			r := run(t, kvstore.NewReader(m.Dial(m.Peer("east")), func() []string { return []string{addr} }, rec, kvstore.ReaderOptions{Prefix: west}))
			etcdtest.Eventually(t, "the reader refuses", func() bool { return strings.Contains(r.State().Error, "answers with key") })
			if r.State().Synced || !rec.is() {
				t.Errorf("rows %s", rec)
			}
		})
	}
}

// shouter is a source whose errors are long and meant for terminals.
type shouter struct{ kvstoreRanger }

func (shouter) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return nil, status.Error(codes.Internal, strings.Repeat("\x1b[2J", 1000))
}

func TestShoutingSource(t *testing.T) {
	m := etcdtest.New(t, "west")
	b := m.Store.Backend()
	b.KV = shouter{b.KV}
	addr := m.Serve(b)
	r := run(t, kvstore.NewReader(m.Dial(m.Peer("east")), func() []string { return []string{addr} }, newRecorder(), kvstore.ReaderOptions{Prefix: west}))
	etcdtest.Eventually(t, "an error", func() bool { return strings.Contains(r.State().Error, "[2J") })
	if e := r.State().Error; len(e) > 1000 || strings.Contains(e, "\x1b") {
		t.Errorf("%d bytes: %q", len(e), e)
	}
}

// TestOddMarks: a mark that is too large, or of no kind, is none.
func TestOddMarks(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"synced/node", strings.Repeat("x", 2000), west+"synced/zebra", "1", west+"node/a", "1")
	rec := newRecorder()
	run(t, kvstore.NewReader(m.Dial(m.Peer("east")), func() []string { return []string{m.Addr} }, rec,
		kvstore.ReaderOptions{Prefix: west, Kinds: []wire.Kind{wire.KindNode}}))
	etcdtest.Eventually(t, "rows", func() bool { return rec.is("node/a", "1") })
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if !slices.Contains(rec.calls, "part node false") {
		t.Errorf("calls %v, want a part without mark", rec.calls)
	}
}

// TestPlainClient shows that etcd's own client reads the mesh API as well.
func TestPlainClient(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(west+"node/a", "1")
	c := m.Client(m.Addr, m.Peer("east"))
	w := c.Watch(t.Context(), west, clientv3.WithPrefix(), clientv3.WithRev(1))
	if resp, err := c.Get(t.Context(), west, clientv3.WithPrefix()); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("get: %v, %v", resp, err)
	}
	if resp := <-w; len(resp.Events) != 1 {
		t.Errorf("watch: %+v", resp)
	}
}

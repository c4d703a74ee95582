package etcdserver_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

const (
	own    = "/clustermesh/v1/west/"
	mirror = "/clustermesh/mirror/v1/west/"
)

func connect(t *testing.T, m *etcdtest.Mesh, addr string, p pki.Pair) *grpc.ClientConn {
	t.Helper()
	c := etcdtest.Must(m.Dial(p)(t.Context(), addr))(t)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// allBackends runs a test on a front over the embedded store, and on one over
// that as an external etcd.
func allBackends(t *testing.T, test func(t *testing.T, m *etcdtest.Mesh, addr string)) {
	t.Run("embedded", func(t *testing.T) {
		m := etcdtest.New(t, "west")
		test(t, m, m.Addr)
	})
	t.Run("external", func(t *testing.T) {
		m := etcdtest.New(t, "west")
		c := m.Client(m.Addr, m.Agent())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := c.Get(ctx, own); err != nil {
			t.Fatal(err)
		}
		test(t, m, m.Serve(etcdserver.External(c)))
	})
}

// TestNothingButReading calls every method that etcd has (invariant M1).
func TestNothingButReading(t *testing.T) {
	m := etcdtest.New(t, "west")
	m.Put(own+"cluster", "c")
	before := m.Store.Stats().Revision
	for name, cert := range map[string]pki.Pair{"peer": m.Peer("east"), "agent": m.Agent()} {
		conn := connect(t, m, m.Addr, cert)
		for method, stream := range etcdMethods() {
			t.Run(name+strings.ReplaceAll(method, "/", " "), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				err := call(ctx, conn, method, stream)
				if code := status.Code(err); code != codes.PermissionDenied && code != codes.Unimplemented {
					t.Errorf("error %v, want permission denied", err)
				}
			})
		}
	}
	if after := m.Store.Stats().Revision; after != before {
		t.Errorf("revision went from %d to %d", before, after)
	}
}

// etcdMethods is every method that etcd's servers have, and whether it is a
// stream, without the two that are served.
func etcdMethods() map[string]bool {
	out := map[string]bool{"/v3electionpb.Election/Campaign": false, "/v3lockpb.Lock/Lock": false, "/grpc.health.v1.Health/Check": false, "/x/y": true}
	for _, d := range []grpc.ServiceDesc{pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc,
		pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc} {
		for _, m := range d.Methods {
			out["/"+d.ServiceName+"/"+m.MethodName] = false
		}
		for _, s := range d.Streams {
			out["/"+d.ServiceName+"/"+s.StreamName] = true
		}
	}
	delete(out, pb.KV_Range_FullMethodName)
	delete(out, pb.Watch_Watch_FullMethodName)
	return out
}

// call sends a request whose bytes are a key of our prefix and a value as
// PutRequest has them; other requests take them for something else.
func call(ctx context.Context, conn *grpc.ClientConn, method string, stream bool) error {
	req := &pb.PutRequest{Key: []byte(own + "node/x"), Value: []byte("x")}
	switch {
	case method == pb.KV_Txn_FullMethodName: // the only one that can't take it for anything
		return conn.Invoke(ctx, method, &pb.TxnRequest{}, &pb.TxnResponse{})
	case !stream:
		return conn.Invoke(ctx, method, req, &pb.PutResponse{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	// io.EOF says that the server has ended the stream already; why, only
	// RecvMsg tells (grpc.ClientStream).
	if err := s.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.RecvMsg(&pb.PutResponse{})
}

// TestRanges: what a peer may read, and an agent (invariant M1).
func TestRanges(t *testing.T) {
	allBackends(t, func(t *testing.T, m *etcdtest.Mesh, addr string) {
		m.Put(own+"cluster", "c", own+"node/a", "1", own+"node/b", "2", mirror+"east/cluster", "e", "/other", "x")
		peer, agent := connect(t, m, addr, m.Peer("east")), connect(t, m, addr, m.Agent())
		for _, tt := range []struct {
			name string
			conn *grpc.ClientConn
			req  *pb.RangeRequest
			keys int
			code codes.Code
		}{
			{"own prefix", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte("/clustermesh/v1/west0")}, 3, codes.OK},
			{"page", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte("/clustermesh/v1/west0"), Limit: 2}, 2, codes.OK},
			{"key", peer, &pb.RangeRequest{Key: []byte(own + "cluster")}, 1, codes.OK},
			{"count", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte("/clustermesh/v1/west0"), CountOnly: true}, 0, codes.OK},
			{"mirror by a peer", peer, &pb.RangeRequest{Key: []byte(mirror), RangeEnd: []byte("/clustermesh/mirror/v1/west0")}, 0, codes.PermissionDenied},
			{"mirror by an agent", agent, &pb.RangeRequest{Key: []byte(mirror), RangeEnd: []byte("/clustermesh/mirror/v1/west0")}, 1, codes.OK},
			{"all", agent, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, 0, codes.PermissionDenied},
			{"from key", agent, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte{0}}, 0, codes.PermissionDenied},
			{"other key", agent, &pb.RangeRequest{Key: []byte("/other")}, 0, codes.PermissionDenied},
			{"sorted", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte(own + "z"), SortOrder: pb.RangeRequest_DESCEND}, 0, codes.InvalidArgument},
			{"too many", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte(own + "z"), Limit: 1e6}, 0, codes.ResourceExhausted},
			{"large request", peer, &pb.RangeRequest{Key: []byte(own + strings.Repeat("x", 100<<10))}, 0, codes.ResourceExhausted},
			{"future", peer, &pb.RangeRequest{Key: []byte(own), RangeEnd: []byte(own + "z"), Limit: 1, Revision: 1e6}, 0, codes.OutOfRange},
		} {
			t.Run(tt.name, func(t *testing.T) {
				resp, err := pb.NewKVClient(tt.conn).Range(t.Context(), tt.req)
				if status.Code(err) != tt.code {
					t.Fatalf("error %v, want %v", err, tt.code)
				}
				if err == nil && (len(resp.Kvs) != tt.keys || resp.Header.ClusterId != m.Store.ClusterID()) {
					t.Errorf("answer %v, want %d keys", resp, tt.keys)
				}
			})
		}
	})
}

// TestWatches: what a peer may follow (invariant M1).
func TestWatches(t *testing.T) {
	allBackends(t, func(t *testing.T, m *etcdtest.Mesh, addr string) {
		c := m.Client(addr, m.Peer("east"))
		for _, tt := range []struct{ name, key, end string }{
			{"mirror", mirror, "/clustermesh/mirror/v1/west0"},
			{"all", "\x00", "\x00"},
			{"from key", own, "\x00"},
			{"longer name", "/clustermesh/v1/west", "/clustermesh/v1/west1"},
			{"no key", "", ""},
		} {
			t.Run("refused "+tt.name, func(t *testing.T) {
				w, err := pb.NewWatchClient(c.ActiveConnection()).Watch(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				create(t, w, tt.key, tt.end)
				if resp, err := w.Recv(); status.Code(err) != codes.PermissionDenied {
					t.Errorf("%v, %v, want permission denied", resp, err)
				}
			})
		}
		t.Run("too many", func(t *testing.T) {
			w, err := pb.NewWatchClient(c.ActiveConnection()).Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 65 {
				create(t, w, own, "/clustermesh/v1/west0")
			}
			for err == nil {
				_, err = w.Recv()
			}
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("error %v, want resource exhausted", err)
			}
		})
		t.Run("served", func(t *testing.T) {
			w := c.Watch(t.Context(), own, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			<-w
			m.Put(own+"node/a", "1")
			if resp := <-w; len(resp.Events) != 1 || string(resp.Events[0].Kv.Key) != own+"node/a" {
				t.Errorf("%+v", resp)
			}
		})
	})
}

func create(t *testing.T, w pb.Watch_WatchClient, key, end string) {
	t.Helper()
	err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end)}}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStrangers connects with certificates that are no good here (invariant M2).
func TestStrangers(t *testing.T) {
	m := etcdtest.New(t, "west")
	pair := func(p pki.Pair, err error) pki.Pair { return etcdtest.Must(p, err)(t) }
	_ = m.Peer("east")
	foreign := pair(pki.NewCA("east", time.Now()))
	north := pair(pki.NewCA("north", time.Now()))
	m.Trust("north", north.Cert)
	for name, cert := range map[string]pki.Pair{
		"none":                     {},
		"foreign authority":        pair(pki.IssuePeer(foreign, "east", time.Now())),
		"other peer's name":        pair(pki.IssuePeer(north, "east", time.Now())),
		"agent from a peer":        pair(pki.IssueAgent(north, time.Now())),
		"unknown name":             pair(pki.IssuePeer(north, "south", time.Now())),
		"peer from our own":        pair(pki.IssuePeer(m.CA, "east", time.Now())),
		"expired":                  pair(pki.IssuePeer(north, "north", time.Now().Add(-2*pki.LeafLife))),
		"authority as certificate": north,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := pb.NewKVClient(connect(t, m, m.Addr, cert)).Range(ctx, &pb.RangeRequest{Key: []byte(own)})
			if status.Code(err) != codes.Unavailable {
				t.Errorf("error %v, want a failed handshake", err)
			}
		})
	}
	etcdtest.Eventually(t, "no stranger stays connected", func() bool { return len(m.Front.Conns()) == 0 })
}

func TestOldTLS(t *testing.T) {
	m := etcdtest.New(t, "west")
	conf := m.TLS(m.Agent())
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", m.Addr, conf); err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestRevokedWhileWatching(t *testing.T) {
	m := etcdtest.New(t, "west")
	east, north := connect(t, m, m.Addr, m.Peer("east")), connect(t, m, m.Addr, m.Peer("north"))
	var watches []pb.Watch_WatchClient
	for _, conn := range []*grpc.ClientConn{east, north} {
		w := etcdtest.Must(pb.NewWatchClient(conn).Watch(t.Context()))(t)
		create(t, w, own, "/clustermesh/v1/west0")
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	if got := fmt.Sprint(m.Front.Conns()); got != "map[peer east:1 peer north:1]" {
		t.Errorf("connections %s", got)
	}
	m.Trust("east") // no authority any more
	m.Put(own+"node/secret", "1")
	if resp, err := watches[0].Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("revoked peer got %v, %v", resp, err)
	}
	if resp, err := watches[1].Recv(); err != nil || len(resp.Events) != 1 {
		t.Errorf("other peer got %v, %v", resp, err)
	}
	_, err := pb.NewKVClient(east).Range(t.Context(), &pb.RangeRequest{Key: []byte(own)})
	if err == nil {
		t.Error("revoked peer came back")
	}
}

// TestRotation gives server and authority new certificates under a running reader.
func TestRotation(t *testing.T) {
	m := etcdtest.New(t, "west")
	oldCA, newCA := etcdtest.Must(pki.NewCA("east", time.Now()))(t), etcdtest.Must(pki.NewCA("east", time.Now()))(t)
	old, next := etcdtest.Must(pki.IssuePeer(oldCA, "east", time.Now()))(t), etcdtest.Must(pki.IssuePeer(newCA, "east", time.Now()))(t)
	m.Trust("east", oldCA.Cert)
	conn := connect(t, m, m.Addr, old)
	read := func(c *grpc.ClientConn) error {
		_, err := pb.NewKVClient(c).Range(t.Context(), &pb.RangeRequest{Key: []byte(own)})
		return err
	}
	if err := read(conn); err != nil {
		t.Fatal(err)
	}
	m.Trust("east", oldCA.Cert, newCA.Cert)
	if err := errors.Join(read(conn), read(connect(t, m, m.Addr, next))); err != nil {
		t.Errorf("while both are trusted: %v", err)
	}
	m.Trust("east", newCA.Cert)
	if err := read(connect(t, m, m.Addr, next)); err != nil {
		t.Errorf("after the change: %v", err)
	}
	if err := read(conn); err == nil {
		t.Error("the old authority still works")
	}
}

// TestConnectionLimit keeps one peer from using up the server.
func TestConnectionLimit(t *testing.T) {
	m := etcdtest.New(t, "west")
	cert := m.Peer("east")
	good := 0
	for range 40 {
		if _, err := pb.NewKVClient(connect(t, m, m.Addr, cert)).Range(t.Context(), &pb.RangeRequest{Key: []byte(own)}); err == nil {
			good++
		}
	}
	if good != 32 {
		t.Errorf("%d connections, want 32", good)
	}
	if _, err := pb.NewKVClient(connect(t, m, m.Addr, m.Agent())).Range(t.Context(), &pb.RangeRequest{Key: []byte(own)}); err != nil {
		t.Errorf("agent: %v", err)
	}
}

// TestLargeRange asks for more rows than one answer may hold.
func TestLargeRange(t *testing.T) {
	m := etcdtest.New(t, "west")
	rows := map[string]string{}
	for i := range 10001 {
		rows[fmt.Sprintf("node/n%05d", i)] = "x"
	}
	if failed := kvstore.NewTarget(m.Store.Client(), own).Apply(t.Context(), rows, nil); len(failed) > 0 {
		t.Fatal(failed)
	}
	c := m.Client(m.Addr, m.Peer("east"))
	if _, err := c.Get(t.Context(), own, clientv3.WithPrefix()); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error %v, want resource exhausted", err)
	}
	if resp, err := c.Get(t.Context(), own, clientv3.WithPrefix(), clientv3.WithLimit(10)); err != nil || len(resp.Kvs) != 10 || !resp.More {
		t.Errorf("page: %v, %v", resp, err)
	}
}

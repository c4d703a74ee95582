package etcdserver_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

// TestWatchesOverStreams spreads watches over streams: each costs time at every
// change, so their number is bounded by connection, and comes back.
func TestWatchesOverStreams(t *testing.T) {
	m := etcdtest.New(t, "west")
	client := pb.NewWatchClient(connect(t, m, m.Addr, m.Peer("east")))
	open := func() (end func(), err error) {
		ctx, end := context.WithCancel(t.Context())
		w := etcdtest.Must(client.Watch(ctx))(t)
		for range 30 {
			_ = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{ // Recv tells the error
				CreateRequest: &pb.WatchCreateRequest{Key: []byte(own), RangeEnd: []byte("/clustermesh/v1/west0")}}})
		}
		for range 30 {
			if _, err = w.Recv(); err != nil {
				break
			}
		}
		return end, err
	}
	var end func()
	for range 2 {
		var err error
		if end, err = open(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("90 watches on three streams: error %v, want resource exhausted", err)
	}
	end()
	etcdtest.Eventually(t, "a stream that ended leaves room", func() bool { _, err := open(); return err == nil })
}

// TestSilentStrangers opens connections and says nothing. They make room for
// each other, and honest clients get in.
func TestSilentStrangers(t *testing.T) {
	m := etcdtest.New(t, "west")
	cert := m.Peer("east")
	var first net.Conn
	for i := range 2048 + 100 {
		c := etcdtest.Must(net.Dial("tcp", m.Addr))(t)
		t.Cleanup(func() { _ = c.Close() })
		if i == 0 {
			first = c
		}
	}
	_ = first.SetReadDeadline(time.Now().Add(5 * time.Second)) // before the timeout of handshakes
	if _, err := first.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the oldest connection is still open: %v", err)
	}
	if _, err := pb.NewKVClient(connect(t, m, m.Addr, cert)).Range(t.Context(), &pb.RangeRequest{Key: []byte(own)}); err != nil {
		t.Error("an honest peer is kept out:", err)
	}
}

// lines counts what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// TestRefusalsAreQuiet: a client can't fill our log.
func TestRefusalsAreQuiet(t *testing.T) {
	m, log := etcdtest.New(t, "west"), &lines{}
	server := etcdtest.Must(pki.IssueServer(m.CA, "west", time.Now()))(t)
	trust := &pki.Trust{Server: server, Agents: etcdtest.Must(pki.ParseBundle(m.CA.CertPEM()))(t)}
	f := etcdserver.NewFront("west", m.Store.Backend(), etcdserver.FrontOptions{
		Log: slog.New(slog.NewTextHandler(log, nil)), Trust: func() *pki.Trust { return trust }})
	l := etcdtest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	go f.Serve(t.Context(), l) //nolint:errcheck // ends with the test
	kv := pb.NewKVClient(connect(t, m, l.Addr().String(), m.Agent()))
	for range 100 {
		if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("/other")}); status.Code(err) != codes.PermissionDenied {
			t.Fatal(err)
		}
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := strings.Count(log.buf.String(), "request refused"); n != 1 {
		t.Errorf("%d lines, want one", n)
	}
}

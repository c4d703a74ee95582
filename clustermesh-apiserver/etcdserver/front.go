package etcdserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

	"github.com/clustermesh/clustermesh/pkg/pki"
)

// FrontOptions of a Front.
type FrontOptions struct {
	Log *slog.Logger
	// Trust is asked at each handshake and by Recheck; nil while there is none.
	Trust func() *pki.Trust
	Now   func() time.Time // nil: time.Now
	Meter FrontMeter       // nil: none
}

// FrontMeter counts what a Front does. Its methods are called at the same time.
type FrontMeter interface {
	// Request ends: a unary call, or a watch stream.
	Request(role pki.Role, method string, code codes.Code)
	// Refused counts handshakes ("handshake", "revoked", "connections") and
	// requests ("method", "range", "options", "watches") that were refused.
	Refused(reason string)
	// Connections changes by delta.
	Connections(role pki.Role, delta int)
}

// Front serves the mesh API: etcd's KV.Range and Watch.Watch, over mutual TLS,
// on the ranges that the client's role may read. It serves nothing else.
type Front struct {
	cluster string
	backend Backend
	opt     FrontOptions

	handshakes handshakes

	mu     sync.Mutex
	conns  map[*conn]struct{}         // guarded by mu
	warned map[pki.Identity]time.Time // guarded by mu: when a refusal was logged last
}

// What one connection may ask for.
const (
	handshakeTimeout  = 10 * time.Second
	maxRequestBytes   = 64 << 10
	maxHeaderBytes    = 16 << 10
	maxHandshakes     = 2048 // at a time, of anybody
	maxStreams        = 16   // what their readers leave unread is in our memory
	maxWatches        = 64   // per connection: each one costs time at every change
	maxConnsPerPeer   = 32   // replicas of the peer's API server, twice while they roll
	maxConnsPerAgents = 1e5  // all agents share an identity
	recheckEvery      = time.Minute
)

// NewFront returns the front of cluster's store.
func NewFront(cluster string, backend Backend, opt FrontOptions) *Front {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Meter == nil {
		opt.Meter = noMeter{}
	}
	return &Front{cluster: cluster, backend: backend, opt: opt, conns: map[*conn]struct{}{}, warned: map[pki.Identity]time.Time{}}
}

// Serve answers on l, which it closes, until ctx ends.
func (f *Front) Serve(ctx context.Context, l net.Listener) error {
	srv := f.server()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	helpers.Go(func() {
		<-ctx.Done()
		srv.Stop()
	})
	helpers.Go(func() { f.recheckNowAndThen(ctx) })
	err := srv.Serve(l)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = errors.New("the server stopped")
	}
	return fmt.Errorf("serve mesh API on %s: %w", l.Addr(), err)
}

func (f *Front) server() *grpc.Server {
	srv := grpc.NewServer(
		grpc.Creds(f.credentials()),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.ReadBufferSize(4<<10), // requests are small
		grpc.UnaryInterceptor(f.unary),
		grpc.StreamInterceptor(f.stream),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return errMethod }),
	)
	pb.RegisterKVServer(srv, rangeOnly{kv: f.backend.KV})
	pb.RegisterWatchServer(srv, f.backend.Watch)
	return srv
}

// rangeOnly is a KV service that can't write, whatever the interceptors let through.
type rangeOnly struct {
	pb.UnimplementedKVServer
	kv Ranger
}

func (r rangeOnly) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	return r.kv.Range(ctx, req)
}

// recheckNowAndThen ends connections whose certificates have expired: their
// owners have new ones by then and come back with those.
func (f *Front) recheckNowAndThen(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.Recheck()
		}
	}
}

type noMeter struct{}

func (noMeter) Request(pki.Role, string, codes.Code) {}
func (noMeter) Refused(string)                       {}
func (noMeter) Connections(pki.Role, int)            {}

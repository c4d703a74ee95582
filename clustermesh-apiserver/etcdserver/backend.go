package etcdserver

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/etcdserver/txn"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Ranger answers ranges.
type Ranger interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
}

// Backend is what a Front reads from.
type Backend struct {
	KV    Ranger
	Watch pb.WatchServer
}

// Backend returns the store for a Front.
func (s *Server) Backend() Backend {
	return Backend{KV: &pager{s, v3rpc.NewKVServer(s.etcd)}, Watch: v3rpc.NewWatchServer(s.etcd)}
}

// pager answers ranges with a limit without counting the rest of the range.
// etcd counts it for every page, which makes reading n rows cost n² steps; so
// with a limit Count is the number of rows in the answer, as etcd's own
// RangeStream has it for its parts.
type pager struct {
	srv *Server
	kv  pb.KVServer
}

// Range implements Ranger. It needs no agreement between members, as there is
// one: a write is answered when it can be read.
func (p *pager) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if r.Limit == 0 || r.CountOnly {
		return p.kv.Range(ctx, r)
	}
	etcd := p.srv.etcd
	resp, _, err := txn.Range(ctx, etcd.Logger(), etcd.KV(), r, false)
	if err != nil {
		return nil, togRPC(err)
	}
	resp.Header.ClusterId = uint64(etcd.Cluster().ID())
	resp.Header.MemberId = uint64(etcd.MemberID())
	resp.Header.RaftTerm = etcd.Term()
	return resp, nil
}

// External is an etcd cluster elsewhere; client must be connected to it.
func External(client *clientv3.Client) Backend {
	conn := client.ActiveConnection()
	return Backend{KV: relay{kv: pb.NewKVClient(conn)}, Watch: relay{watch: pb.NewWatchClient(conn)}}
}

// relay passes requests on.
type relay struct {
	pb.UnimplementedWatchServer
	kv    pb.KVClient
	watch pb.WatchClient
}

// Range implements Ranger.
func (r relay) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	return r.kv.Range(ctx, req)
}

// Watch implements pb.WatchServer. Streams are passed on one to one, so that a
// slow reader slows down its own stream only.
func (r relay) Watch(down pb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	// A member that has lost its leader ends the stream instead of going quiet.
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	up, err := r.watch.Watch(ctx, grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	requests := make(chan error, 1)
	go func() { // ends with the stream, at the latest when this method returns
		requests <- pass(down.Recv, up.Send)
		cancel()
	}()
	err = pass(up.Recv, down.Send)
	select {
	case rerr := <-requests:
		if rerr != nil {
			return rerr // why a request was refused says more than that the stream ended
		}
	default:
	}
	return err
}

// pass moves messages until one side ends.
func pass[T any](recv func() (*T, error), send func(*T) error) error {
	for {
		m, err := recv()
		if err != nil {
			return err
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

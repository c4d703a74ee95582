package main

import (
	"context"
	"crypto/tls"
	"hash/maphash"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// rest knows which of the peers' rows that are no nodes a reader holds. Of a row
// it keeps eight bytes, a hash of its key: there are 275,000 of them.
type rest struct {
	table   *state.Table[uint64, struct{}]
	seed    maphash.Seed
	reading *kvstore.Reader
}

func newRest() *rest {
	return &rest{table: state.New[uint64, struct{}](), seed: maphash.MakeSeed()}
}

// startRest follows the mirror of cluster until ctx ends, and returns when it has
// listed it. It is another reader than that of the nodes, which reads what an
// agent does and is timed.
func startRest(ctx context.Context, cluster string, conf *tls.Config) (r *rest, err error) {
	r = newRest()
	r.reading, err = readMirror(ctx, cluster, conf, r.sinks())
	return r, err
}

// catchUp waits until the reader has taken in all up to a header's revision, and
// calls look meanwhile. The peers' heartbeats keep the reader's revision moving.
func (r *rest) catchUp(ctx context.Context, to *pb.ResponseHeader, look func()) error {
	return poll(ctx, 2*time.Millisecond, time.Minute, "the reader of identities and endpoints to catch up", func() bool {
		look()
		s := r.reading.State()
		return s.ClusterID == to.ClusterId && s.Revision >= to.Revision
	})
}

func (r *rest) sinks() map[wire.Kind]kvstore.Sink {
	return map[wire.Kind]kvstore.Sink{
		wire.KindIdentity: r.sink(wire.KindIdentity),
		wire.KindEndpoint: r.sink(wire.KindEndpoint),
	}
}

// sink of a kind. A list replaces all that a source has, so each kind of a peer
// is a source.
func (r *rest) sink(kind wire.Kind) kvstore.Sink {
	return kvstore.NewTableSink(r.table, kvstore.TableOptions[uint64, struct{}]{
		Source: func(peer string) string { return string(kind) + "/" + peer },
		Key: func(peer, key string) (uint64, error) {
			return maphash.String(r.seed, peer+"/"+key), nil
		},
		Decode: func(string, string, []byte) (struct{}, error) { return struct{}{}, nil },
	})
}

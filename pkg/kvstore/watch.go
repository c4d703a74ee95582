package kvstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

type watchResponse = etcdserverpb.WatchResponse

// We speak the watch protocol ourselves, because clientv3's watcher takes any
// store that comes back for the one it knew, and holds an unbounded backlog for
// a receiver that is slow. Here the backlog stays with the source.

const (
	// maxBatch is how many events at most a sink gets at once.
	maxBatch = 8192
	// lookEvery is how often the endpoint is looked up in the list again.
	lookEvery = 5 * time.Second
)

// watch hands changes to the sink from the revision after the last one.
func (r *Reader) watch(ctx context.Context, src *source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	responses, failed, err := src.watch(ctx, r.revision+1)
	if err != nil {
		return err
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case <-r.relist:
			return &listAgainError{why: errors.New("the receiver asked for it"), asked: true}
		case <-look.C:
			if !slices.Contains(r.endpoints(), src.endpoint) {
				return fmt.Errorf("%s is not an endpoint any more", src.endpoint)
			}
		case resp := <-responses:
			if err := r.take(ctx, src, resp, responses); err != nil {
				return err
			}
		}
	}
}

// watch starts a watch of the whole prefix. Responses come in order; failed
// gets the reason for the end. The stream ends with ctx.
func (s *source) watch(ctx context.Context, from int64) (<-chan *watchResponse, <-chan error, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	stream, err := etcdserverpb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s at %s: %w", s.opt.Prefix, s.endpoint, err)
	}
	err = stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
		CreateRequest: &etcdserverpb.WatchCreateRequest{
			Key: []byte(s.opt.Prefix), RangeEnd: []byte(prefixEnd(s.opt.Prefix)),
			StartRevision: from, ProgressNotify: true, Fragment: true,
		},
	}})
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s at %s: %w", s.opt.Prefix, s.endpoint, err)
	}
	responses, failed := make(chan *watchResponse, 8), make(chan error, 1)
	go func() { // ends with ctx, which its caller ends
		for {
			resp, err := stream.Recv()
			if err != nil {
				failed <- fmt.Errorf("watch %s at %s: %w", s.opt.Prefix, s.endpoint, err)
				return
			}
			select {
			case responses <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return responses, failed, nil
}

// take hands a response to the sink, with those that wait behind it: while a
// sink is busy, changes pile up and come as one batch.
func (r *Reader) take(ctx context.Context, src *source, resp *watchResponse, more <-chan *watchResponse) error {
	var b batch
	for {
		if err := r.gather(&b, resp); err != nil {
			return err
		}
		if len(b.events) >= maxBatch {
			break
		}
		select {
		case resp = <-more:
			continue
		default:
		}
		break
	}
	if len(b.events) > 0 {
		r.reaching(r.cluster, max(r.revision, b.revision))
		if err := r.sink.Events(ctx, b.events); err != nil {
			return sinkError(err)
		}
	}
	if b.revision > r.revision {
		r.revision = b.revision
		r.update(func(s *State) { s.Revision, s.Error = r.revision, "" })
	}
	if err := r.listMarked(ctx, src, b.marks); err != nil {
		return &listAgainError{why: err, failed: true} // the marks do not come again
	}
	return nil
}

// batch is what was gathered from some responses.
type batch struct {
	events   []Event
	marks    map[Part][]byte // parts that the source vouches for as of now
	revision int64           // complete up to here
}

func (r *Reader) gather(b *batch, resp *watchResponse) error {
	switch {
	case resp.Header == nil || resp.Header.ClusterId != r.cluster:
		return &listAgainError{why: errOtherCluster}
	case resp.CompactRevision != 0:
		return &listAgainError{why: fmt.Errorf("history up to revision %d is gone", resp.CompactRevision), failed: true}
	case resp.Canceled:
		return fmt.Errorf("watch %s: cancelled by the source: %s", r.opt.Prefix, resp.CancelReason)
	case resp.Created && resp.Header.Revision < r.revision:
		return &listAgainError{why: fmt.Errorf("the source is at revision %d, before %d", resp.Header.Revision, r.revision)}
	case resp.Created:
		return nil // events from before its header's revision are still to come
	}
	for _, e := range resp.Events {
		r.event(b, e)
	}
	b.revision = max(b.revision, complete(resp))
	return nil
}

// complete is the revision up to which a response brings the watch. A response
// without events tells progress; the header of one with events may be ahead of
// them, since etcd sends a backlog in pieces; and a fragment ends within a revision.
func complete(resp *watchResponse) int64 {
	switch n := len(resp.Events); {
	case resp.Fragment:
		return 0
	case n == 0:
		return resp.Header.Revision
	case resp.Events[n-1].Kv == nil:
		return 0
	default:
		return resp.Events[n-1].Kv.ModRevision
	}
}

// event sorts one change into the batch. What is not of a known kind is left.
func (r *Reader) event(b *batch, e *mvccpb.Event) {
	if e.Kv == nil {
		return
	}
	p, key, ok := r.split(string(e.Kv.Key))
	if !ok || e.Kv.ModRevision <= r.listedAt[p] {
		return
	}
	deleted := e.Type == mvccpb.Event_DELETE
	if p.Kind == wire.KindSynced {
		kind := wire.Kind(strings.TrimPrefix(key, wire.KindPrefix(wire.KindSynced)))
		part := Part{p.Group, kind}
		if m := mark(e.Kv.Value); m != nil && !deleted && !r.vouched[part] && slices.Contains(r.opt.Kinds, kind) {
			if b.marks == nil {
				b.marks = map[Part][]byte{}
			}
			b.marks[part] = m
		}
		return
	}
	if !slices.Contains(r.opt.Kinds, p.Kind) {
		return
	}
	ev := Event{Part: p, Row: Row{Key: key}, Deleted: deleted}
	if !deleted {
		ev.Value = e.Kv.Value
	}
	b.events = append(b.events, ev)
}

// split takes a full key apart.
func (r *Reader) split(full string) (p Part, key string, ok bool) {
	key, ok = strings.CutPrefix(full, r.opt.Prefix)
	if ok && r.opt.Grouped {
		p.Group, key, ok = strings.Cut(key, "/")
	}
	kind, _, _ := strings.Cut(key, "/")
	p.Kind = wire.Kind(kind)
	return p, key, ok
}

// listMarked lists parts that the source has come to vouch for since they were
// listed: what is not in them now may go. The watch goes on from where it was,
// and what the list has seen already is left out of it.
func (r *Reader) listMarked(ctx context.Context, src *source, marks map[Part][]byte) error {
	if len(marks) == 0 {
		return nil
	}
	head, err := src.head(ctx)
	if err != nil {
		return err
	}
	l := ListInfo{Endpoint: src.endpoint, ClusterID: r.cluster, Revision: head.Revision}
	for _, kind := range r.opt.Kinds { // in list order
		for part, synced := range marks {
			if part.Kind != kind {
				continue
			}
			if err := r.listPart(ctx, src, l, part, synced); err != nil {
				return err
			}
			r.listedAt[part] = l.Revision
		}
	}
	return nil
}

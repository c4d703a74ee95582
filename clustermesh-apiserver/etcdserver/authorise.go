package etcdserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/clustermesh/clustermesh/pkg/pki"
)

// The answers to what is not allowed. errMethod never says what exists.
var (
	errMethod  = status.Error(codes.PermissionDenied, "clustermesh: the mesh API serves Range and Watch only")
	errRange   = status.Error(codes.PermissionDenied, "clustermesh: range is not readable with this certificate")
	errSort    = status.Error(codes.InvalidArgument, "clustermesh: rows come in ascending key order, unfiltered")
	errWatches = status.Error(codes.ResourceExhausted, "clustermesh: too many watches on one connection")
	errRows    = status.Error(codes.ResourceExhausted, fmt.Sprintf("clustermesh: range holds more than %d rows, ask for pages", maxRows))
)

// maxRows is the size of an answer. A range without a limit is served if it
// holds no more, and refused, never cut short, if it does.
const maxRows = 10000

// unary lets Range pass, on readable ranges.
func (f *Front) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c, ok := caller(ctx)
	if !ok {
		return nil, errMethod // there is no connection without an identity
	}
	id := c.id
	r, isRange := req.(*pb.RangeRequest)
	if !isRange || info.FullMethod != pb.KV_Range_FullMethodName {
		return nil, f.refuse(id, "method", errMethod)
	}
	if err := f.checkRange(id, r); err != nil {
		return nil, err
	}
	unlimited := r.Limit == 0 && !r.CountOnly
	if unlimited {
		r.Limit = maxRows
	}
	resp, err := next(ctx, req)
	if rr, is := resp.(*pb.RangeResponse); err == nil && is && unlimited && rr.More {
		resp, err = nil, errRows
	}
	f.opt.Meter.Request(id.Role, "Range", status.Code(err))
	return resp, err
}

func (f *Front) checkRange(id pki.Identity, r *pb.RangeRequest) error {
	switch {
	case !within(readable(f.cluster, id), r.Key, r.RangeEnd):
		return f.refuse(id, "range", errRange)
	case costly(r):
		return f.refuse(id, "options", errSort)
	case r.Limit > maxRows:
		return f.refuse(id, "options", errRows)
	}
	return nil
}

// costly ranges make etcd read all rows of the range to answer with some.
func costly(r *pb.RangeRequest) bool {
	ordered := r.SortOrder == pb.RangeRequest_NONE && r.SortTarget == pb.RangeRequest_KEY ||
		r.SortOrder == pb.RangeRequest_ASCEND && r.SortTarget == pb.RangeRequest_KEY
	filtered := r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
	return !ordered || filtered || r.Limit < 0
}

// stream lets Watch pass and checks every watch that is made on it.
func (f *Front) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	c, ok := caller(ss.Context())
	if !ok {
		return errMethod
	}
	if info.FullMethod != pb.Watch_Watch_FullMethodName {
		return f.refuse(c.id, "method", errMethod)
	}
	w := &watchStream{ServerStream: ss, front: f, conn: c}
	err := next(srv, w)
	c.watches.Add(-w.made.Load())
	f.opt.Meter.Request(c.id.Role, "Watch", status.Code(err))
	return err
}

// watchStream checks what comes in on a stream of watches. RecvMsg is called by
// one goroutine only, which may outlive the handler for a moment.
type watchStream struct {
	grpc.ServerStream
	front *Front
	conn  *conn
	made  atomic.Int32
}

// RecvMsg implements grpc.ServerStream. A watch that is not allowed ends the
// whole stream: its client does not know its place.
func (w *watchStream) RecvMsg(m any) error {
	if err := w.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	req, ok := m.(*pb.WatchRequest)
	if !ok {
		return w.front.refuse(w.conn.id, "method", errMethod)
	}
	switch u := req.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		return w.create(u.CreateRequest)
	case *pb.WatchRequest_CancelRequest, *pb.WatchRequest_ProgressRequest:
		return nil
	}
	return w.front.refuse(w.conn.id, "method", errMethod)
}

// create counts the watches of the connection. Those that were cancelled count
// until their stream ends, because their number is the client's to tell.
func (w *watchStream) create(c *pb.WatchCreateRequest) error {
	if c == nil || !within(readable(w.front.cluster, w.conn.id), c.Key, c.RangeEnd) {
		return w.front.refuse(w.conn.id, "range", errRange)
	}
	w.made.Add(1)
	if w.conn.watches.Add(1) > maxWatches {
		return w.front.refuse(w.conn.id, "watches", errWatches)
	}
	return nil
}

func (f *Front) refuse(id pki.Identity, reason string, err error) error {
	f.opt.Meter.Refused(reason)
	level := slog.LevelDebug
	if f.mayWarn(id) {
		level = slog.LevelWarn
	}
	f.opt.Log.Log(context.Background(), level, "request refused", "client", id.String(), "reason", reason)
	return err
}

// warnEvery bounds what a client can write into our log; the metric counts all.
const warnEvery = time.Minute

func (f *Front) mayWarn(id pki.Identity) bool {
	now := f.opt.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if last, ok := f.warned[id]; ok && now.Sub(last) < warnEvery {
		return false
	}
	f.warned[id] = now
	return true
}

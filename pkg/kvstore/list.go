package kvstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// errOtherCluster says that an endpoint's store was replaced while in use.
var errOtherCluster = errors.New("the endpoint has another store now")

// list hands all rows to the sink, at one revision.
func (r *Reader) list(ctx context.Context, src *source) error {
	leave, err := r.opt.Gate.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	select {
	case <-r.relist: // this is it
	default:
	}
	head, err := src.head(ctx)
	if err != nil {
		return err
	}
	l := ListInfo{Endpoint: src.endpoint, ClusterID: head.ClusterId, Revision: head.Revision}
	r.vouched, r.listedAt = map[Part]bool{}, map[Part]int64{}
	if err := r.sink.BeginList(ctx, l); err != nil {
		return sinkError(err)
	}
	groups, err := src.groups(ctx, l)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := r.listGroup(ctx, src, l, g); err != nil {
			return err
		}
	}
	r.reaching(l.ClusterID, l.Revision)
	if err := r.sink.EndList(ctx); err != nil {
		return sinkError(err)
	}
	r.cluster, r.revision = l.ClusterID, l.Revision
	r.update(func(s *State) {
		s.Synced, s.ClusterID, s.Revision, s.Error = true, r.cluster, r.revision, ""
		s.Lists++
	})
	return nil
}

// listGroup lists the marks first: they stand for the same revision as the rows.
func (r *Reader) listGroup(ctx context.Context, src *source, l ListInfo, group string) error {
	marks := map[wire.Kind][]byte{}
	err := src.pages(ctx, l, Part{group, wire.KindSynced}, func(rows []Row) error {
		for _, row := range rows {
			kind := wire.Kind(strings.TrimPrefix(row.Key, wire.KindPrefix(wire.KindSynced)))
			if slices.Contains(r.opt.Kinds, kind) { // else it could send marks without end
				marks[kind] = mark(row.Value)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, kind := range r.opt.Kinds {
		if err := r.listPart(ctx, src, l, Part{group, kind}, marks[kind]); err != nil {
			return err
		}
	}
	return nil
}

// maxMark is the size in bytes above which a mark is none.
const maxMark = 1 << 10

// mark tells an empty mark from none.
func mark(value []byte) []byte {
	switch {
	case len(value) > maxMark:
		return nil
	case value == nil:
		return []byte{}
	}
	return value
}

func (r *Reader) listPart(ctx context.Context, src *source, l ListInfo, p Part, synced []byte) error {
	if err := r.sink.BeginPart(ctx, p, synced); err != nil {
		return sinkError(err)
	}
	err := src.pages(ctx, l, p, func(rows []Row) error { return sinkError(r.sink.Rows(ctx, p, rows)) })
	if err != nil {
		return err
	}
	if err := r.sink.EndPart(ctx, p); err != nil {
		return sinkError(err)
	}
	r.vouched[p] = synced != nil
	return nil
}

// prefix is what the keys of a group begin with.
func (s *source) prefix(group string) string {
	if !s.opt.Grouped {
		return s.opt.Prefix
	}
	return s.opt.Prefix + group + "/"
}

// head asks for the store's identity and revision.
func (s *source) head(ctx context.Context) (*pb.ResponseHeader, error) {
	resp, err := s.get(ctx, &pb.RangeRequest{Key: []byte(s.opt.Prefix), Limit: 1, KeysOnly: true})
	if err != nil {
		return nil, err
	}
	return resp.Header, nil
}

// groups finds the groups there are, by leaping from each to behind its rows.
func (s *source) groups(ctx context.Context, l ListInfo) ([]string, error) {
	if !s.opt.Grouped {
		return []string{""}, nil
	}
	var groups []string
	from, end := s.opt.Prefix, prefixEnd(s.opt.Prefix)
	for {
		resp, err := s.get(ctx, &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(end), Limit: 1, KeysOnly: true, Revision: l.Revision})
		if err != nil {
			return nil, listError(err)
		}
		if len(resp.Kvs) == 0 {
			return groups, nil
		}
		key := string(resp.Kvs[0].Key)
		if key < from || key >= end {
			return nil, fmt.Errorf("list %s: %s answers with key %.200q", from, s.endpoint, key)
		}
		group, _, ok := strings.Cut(key[len(s.opt.Prefix):], "/")
		if ok {
			groups = append(groups, group)
			from = prefixEnd(s.prefix(group))
		} else {
			from = key + "\x00"
		}
	}
}

// pages reads a part, a page at a time. A source that answers with keys that
// were not asked for, or out of order, is refused: sinks count on the order.
func (s *source) pages(ctx context.Context, l ListInfo, p Part, page func([]Row) error) error {
	strip := len(s.prefix(p.Group))
	req := &pb.RangeRequest{Key: []byte(s.prefix(p.Group) + wire.KindPrefix(p.Kind)), Revision: l.Revision, Limit: s.opt.PageRows}
	end := ""
	if strings.HasSuffix(wire.KindPrefix(p.Kind), "/") {
		end = prefixEnd(string(req.Key))
		req.RangeEnd = []byte(end)
	}
	for {
		resp, err := s.get(ctx, req)
		if err != nil {
			return listError(err)
		}
		if resp.Header.ClusterId != l.ClusterID {
			return &listAgainError{why: errOtherCluster}
		}
		rows := make([]Row, 0, len(resp.Kvs))
		next := string(req.Key)
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			if key < next || end == "" && key != next || end != "" && key >= end {
				return fmt.Errorf("list %s: %s answers with key %.200q", req.Key, s.endpoint, key)
			}
			rows = append(rows, Row{Key: key[strip:], Value: kv.Value})
			next = key + "\x00"
		}
		if len(rows) > 0 {
			if err := page(rows); err != nil {
				return err
			}
		}
		if !resp.More || len(rows) == 0 {
			return nil
		}
		req.Key = []byte(next)
	}
}

func (s *source) get(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.kv.Range(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("read %s from %s: %w", req.Key, s.endpoint, err)
	}
	if resp.Header == nil {
		return nil, fmt.Errorf("read %s from %s: answer without a header", req.Key, s.endpoint)
	}
	return resp, nil
}

// listError turns a revision that is gone into another try on the same connection.
func listError(err error) error {
	var e rpctypes.EtcdError
	if errors.As(rpctypes.Error(rootStatus(err)), &e) && (errors.Is(e, rpctypes.ErrCompacted) || errors.Is(e, rpctypes.ErrFutureRev)) {
		return &listAgainError{why: err, failed: true}
	}
	return err
}

// rootStatus is the gRPC status at the bottom of a wrapped error, which
// rpctypes compares as it is.
func rootStatus(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// prefixEnd is the first key behind all that begin with prefix, which must not
// end in a byte of 0xff.
func prefixEnd(prefix string) string {
	return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
}

package etcdserver

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// How much history is kept. A reader that was away for less resumes; one that
// was away longer lists again. Both bounds hold: the time for quiet stores, the
// number of revisions for busy ones, where history is what fills memory.
const (
	keepFor       = 10 * time.Minute
	keepRevisions = 20000
	compactEvery  = 10 * time.Second
)

// compact forgets old history until ctx ends.
func (s *Server) compact(ctx context.Context) {
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	var h history
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.etcd.StopNotify():
			return
		case now := <-tick.C:
			rev, ok := h.next(now, s.etcd.KV().Rev())
			if s.crowded() { // history gives way before the quota stops every write
				rev, ok = h.all(s.etcd.KV().Rev())
			}
			if !ok {
				continue
			}
			_, err := s.etcd.Compact(ctx, &pb.CompactionRequest{Revision: rev})
			if err != nil && ctx.Err() == nil && !errors.Is(err, mvcc.ErrCompacted) {
				s.log.Warn("store not compacted", "revision", rev, "error", err)
			}
		}
	}
}

// crowded tells whether what is in use has come near the quota: a peer may change
// large rows faster than revisions and minutes can tell.
func (s *Server) crowded() bool { return s.etcd.Backend().SizeInUse() > s.etcd.Cfg.QuotaBackendBytes/4 }

// history remembers which revision was current when.
type history struct {
	seen []sample
	done int64 // compacted up to here
}

type sample struct {
	at  time.Time
	rev int64
}

// all gives up all history before the current revision, if there is any.
func (h *history) all(current int64) (int64, bool) {
	if current <= h.done {
		return 0, false
	}
	h.done = current
	return current, true
}

// next notes the current revision and says which one to compact to, if any. A
// store is compacted in steps of a quarter of what is kept, since each one costs
// a pass over all keys.
func (h *history) next(now time.Time, current int64) (int64, bool) {
	h.seen = append(h.seen, sample{now, current})
	target := current - keepRevisions
	n := 0
	for n < len(h.seen)-1 && now.Sub(h.seen[n].at) >= keepFor {
		target = max(target, h.seen[n].rev)
		n++
	}
	h.seen = h.seen[n:]
	old := current-h.done > keepRevisions+keepRevisions/4 || n > 0 && target-h.done > keepRevisions/4
	if target <= h.done || !old {
		return 0, false
	}
	h.done = target
	return target, true
}

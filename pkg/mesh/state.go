package mesh

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// State is how one Peer is doing.
type State struct {
	status.Peer
	Object   kube.Peer
	Rejected error         // why the Peer object can't be used; nil if it can
	Header   *wire.Cluster // what the peer says of itself; nil: nothing yet
	BeatAt   time.Time     // when its heartbeat last changed; zero: never
	Lists    int           // full lists since the link began
}

// StaleAfter is the silence after which a peer no longer counts as connected.
const StaleAfter = 30 * time.Second

// countEvery bounds how often the mirror is counted while it changes.
const countEvery = 5 * time.Second

// States is how all peers are doing, sorted by name.
func (s *Set) States(ctx context.Context) []State {
	s.mu.Lock()
	rows, verdicts, links := s.rows, s.verdicts, maps.Clone(s.links)
	s.mu.Unlock()
	out := make([]State, 0, len(rows))
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		st := State{Peer: status.Peer{Name: name, HeartbeatSeconds: -1, Counts: map[string]int{}},
			Object: rows[name], Rejected: verdicts[name].Err}
		if l := links[name]; l != nil {
			l.describe(ctx, &st)
		} else if st.Rejected != nil {
			st.Error = st.Rejected.Error()
		}
		out = append(out, st)
	}
	return out
}

// Beats is when each peer with a link was heard of last; zero: never.
func (s *Set) Beats() map[string]time.Time {
	s.mu.Lock()
	links := maps.Clone(s.links)
	s.mu.Unlock()
	out := make(map[string]time.Time, len(links))
	for name, l := range links {
		l.mu.Lock()
		out[name] = l.beatAt
		l.mu.Unlock()
	}
	return out
}

func (l *link) describe(ctx context.Context, st *State) {
	r := l.reader.State()
	st.Connected, st.Since, st.Endpoint, st.Error = r.Connected, r.Since, r.Endpoint, r.Error
	st.Lists = r.Lists
	if r.ClusterID != 0 {
		st.Incarnation = fmt.Sprintf("%016x", r.ClusterID)
	}
	st.Refused = l.admission.Refused()
	for k, n := range l.count(ctx, r.Lists) {
		st.Counts[string(k)] = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Synced = r.Synced && l.marked[wire.KindCluster] && l.marked[wire.KindNode]
	st.Header, st.BeatAt = l.header, l.beatAt
	if !l.beatAt.IsZero() {
		st.HeartbeatSeconds = l.opt.Now().Sub(l.beatAt).Seconds()
	}
}

// count returns the rows in the mirror by kind. It asks the store only if they
// changed, and not all the time, but after every full list: who reads that a
// peer is synced wants to read of its rows, too.
func (l *link) count(ctx context.Context, lists int) map[wire.Kind]int {
	l.mu.Lock()
	counts, fresh := l.counts, l.counts != nil && lists == l.countedOf && (!l.stale || time.Since(l.countedAt) < countEvery)
	l.mu.Unlock()
	if fresh {
		return counts
	}
	counts, err := kvstore.Counts(ctx, l.opt.Store, l.prefix)
	if err != nil {
		return nil // it is shown elsewhere that the store does not answer
	}
	delete(counts, wire.KindSynced)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts, l.countedAt, l.countedOf, l.stale = counts, time.Now(), lists, false
	return counts
}

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

// Beat is when a peer was heard of last.
type Beat struct {
	At      time.Time // at the earliest when we began to listen
	Refused bool      // its Peer object can't be used: nobody listens
}

// Beats are those of the peers that have been looked at.
func (s *Set) Beats() map[string]Beat {
	s.mu.Lock()
	verdicts, links := s.verdicts, maps.Clone(s.links)
	s.mu.Unlock()
	out := make(map[string]Beat, len(verdicts))
	for name, v := range verdicts {
		if !v.Usable() {
			out[name] = Beat{Refused: true}
		}
	}
	for name, l := range links {
		l.mu.Lock()
		b := Beat{At: l.beatAt}
		l.mu.Unlock()
		if b.At.Before(l.began) {
			b.At = l.began
		}
		out[name] = b
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

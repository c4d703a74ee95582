package mesh

import (
	"hash/maphash"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ledger counts the refused rows of a peer by reason. It knows up to maxNoted
// of them by a hash of their keys, so that a row that is mended is no longer
// counted; beyond that counts are corrected by the next list.
type ledger struct {
	seed   maphash.Seed
	noted  map[uint64]noted
	counts map[wire.Kind]map[Reason]*status.Refusal
}

type noted struct {
	kind   wire.Kind
	reason Reason
}

const (
	maxNoted   = 16384
	maxExample = 200
)

func newLedger() *ledger {
	return &ledger{seed: maphash.MakeSeed(), noted: map[uint64]noted{}, counts: map[wire.Kind]map[Reason]*status.Refusal{}}
}

// reset forgets all refusals of a kind.
func (l *ledger) reset(k wire.Kind) {
	if len(l.counts[k]) == 0 {
		return
	}
	delete(l.counts, k)
	maps.DeleteFunc(l.noted, func(_ uint64, n noted) bool { return n.kind == k })
}

// clear notes that a row is gone or admitted.
func (l *ledger) clear(key string) {
	if len(l.noted) == 0 {
		return
	}
	h := maphash.String(l.seed, key)
	n, ok := l.noted[h]
	if !ok {
		return
	}
	delete(l.noted, h)
	if c := l.counts[n.kind][n.reason]; c != nil {
		if c.Count--; c.Count <= 0 {
			delete(l.counts[n.kind], n.reason)
		}
	}
}

func (l *ledger) refuse(k wire.Kind, key string, r *Refusal) {
	l.clear(key)
	if len(l.noted) < maxNoted {
		l.noted[maphash.String(l.seed, key)] = noted{k, r.Reason}
	}
	if l.counts[k] == nil {
		l.counts[k] = map[Reason]*status.Refusal{}
	}
	c := l.counts[k][r.Reason]
	if c == nil {
		c = &status.Refusal{Reason: string(r.Reason)}
		l.counts[k][r.Reason] = c
	}
	c.Count++
	if len(key) > maxExample {
		key = key[:maxExample] + "…"
	}
	c.Example, c.Message = key, r.Message
}

// has tells whether rows are refused for a reason.
func (l *ledger) has(k wire.Kind, r Reason) bool { return l.counts[k][r] != nil }

// report adds up the counts of all kinds, sorted by reason.
func (l *ledger) report() []status.Refusal {
	sum := map[string]status.Refusal{}
	for _, k := range wire.Kinds() {
		for reason, c := range l.counts[k] {
			s := sum[string(reason)]
			n := s.Count + c.Count
			s = *c
			s.Count = n
			sum[string(reason)] = s
		}
	}
	var out []status.Refusal
	for _, r := range slices.Sorted(maps.Keys(sum)) {
		out = append(out, sum[r])
	}
	return out
}

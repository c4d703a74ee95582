package mesh

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ledger counts the refused rows of a peer by reason, with some examples. It
// knows up to maxNoted of them by a hash of their keys, so that a row that is
// mended is no longer counted; beyond that counts are corrected by the next list.
type ledger struct {
	seed    maphash.Seed
	noted   map[uint64]why
	tallies map[why]*tally
}

type why struct {
	kind   wire.Kind
	reason Reason
}

type tally struct {
	count    int64
	examples []example // the newest last
}

type example struct{ key, message string }

const (
	maxNoted    = 16384
	maxExamples = 8
	maxExample  = 200 // bytes of a key
)

func newLedger() *ledger {
	return &ledger{seed: maphash.MakeSeed(), noted: map[uint64]why{}, tallies: map[why]*tally{}}
}

// reset forgets all refusals of a kind.
func (l *ledger) reset(k wire.Kind) {
	maps.DeleteFunc(l.tallies, func(w why, _ *tally) bool { return w.kind == k })
	maps.DeleteFunc(l.noted, func(_ uint64, w why) bool { return w.kind == k })
}

// clear notes that a row is gone or admitted.
func (l *ledger) clear(key string) {
	if len(l.noted) == 0 {
		return
	}
	h := maphash.String(l.seed, key)
	w, ok := l.noted[h]
	if !ok {
		return
	}
	delete(l.noted, h)
	t := l.tallies[w]
	if t.count--; t.count <= 0 {
		delete(l.tallies, w)
		return
	}
	t.examples = slices.DeleteFunc(t.examples, func(e example) bool { return e.key == short(key) })
}

func (l *ledger) refuse(k wire.Kind, key string, r *Refusal) {
	l.clear(key)
	w := why{k, r.Reason}
	if len(l.noted) < maxNoted {
		l.noted[maphash.String(l.seed, key)] = w
	}
	t := l.tallies[w]
	if t == nil {
		t = &tally{}
		l.tallies[w] = t
	}
	t.count++
	if len(t.examples) == maxExamples {
		t.examples = slices.Delete(t.examples, 0, 1)
	}
	t.examples = append(t.examples, example{short(key), r.Message})
}

func short(key string) string { return wire.Shown(key, maxExample) }

// has tells whether rows are refused for a reason.
func (l *ledger) has(k wire.Kind, r Reason) bool { return l.tallies[why{k, r}] != nil }

// report adds up the counts of all kinds, sorted by reason.
func (l *ledger) report() []status.Refusal {
	var out []status.Refusal
	for _, reason := range Reasons() {
		sum := status.Refusal{Reason: string(reason)}
		for _, k := range admitted() {
			t := l.tallies[why{k, reason}]
			if t == nil {
				continue
			}
			sum.Count += t.count
			if n := len(t.examples); n > 0 {
				sum.Example, sum.Message = t.examples[n-1].key, t.examples[n-1].message
			}
		}
		if sum.Count > 0 {
			out = append(out, sum)
		}
	}
	slices.SortFunc(out, func(a, b status.Refusal) int { return cmp.Compare(a.Reason, b.Reason) })
	return out
}

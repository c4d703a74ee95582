package mesh

import (
	"strings"
	"sync"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Store answers what Admission does not keep. It is asked at a limit only.
type Store interface {
	Count(k wire.Kind) int // admitted rows of a kind
	Size(key string) int   // of an admitted row's value; less than 0 if there is none
}

// Admission judges the rows of one peer, one after another, and counts. It
// keeps no rows: only the claims of nodes, and what was refused why.
type Admission struct {
	rules  *Rules
	claims *Claims
	relist func() // asks for a new list; must not block
	store  Store

	mu      sync.Mutex
	ledger  *ledger             // guarded by mu
	rows    map[wire.Kind]int   // guarded by mu: at most so many are admitted
	bytes   map[wire.Kind]int64 // guarded by mu: at most so many bytes
	listing wire.Kind           // guarded by mu: the kind that is being listed with nothing left behind, if any
	whole   map[wire.Kind]bool  // guarded by mu: kinds whose last list came to its end, with a mark
}

// NewAdmission returns the admission of one peer.
func NewAdmission(r *Rules, c *Claims, relist func(), store Store) *Admission {
	c.Open(r)
	return &Admission{rules: r, claims: c, relist: relist, store: store,
		ledger: newLedger(), rows: map[wire.Kind]int{}, bytes: map[wire.Kind]int64{}, whole: map[wire.Kind]bool{}}
}

// Resume counts the rows that were admitted before a restart, and goes on from
// there. What was refused is learnt again by the next list.
func (a *Admission) Resume() {
	for _, k := range admitted() {
		n := a.store.Count(k)
		a.mu.Lock()
		a.rows[k] = n
		a.mu.Unlock()
	}
}

// Begin begins the list of a kind; marked tells whether rows that are not in it
// go in the end. What was counted before is void, unless rows may stay behind:
// those of a list without a mark or of one that was given up. With them a list
// has no more room than changes have, or a peer could fill the store with lists
// that it never ends.
func (a *Admission) Begin(k wire.Kind, marked bool) {
	if k == wire.KindNode {
		a.claims.BeginList(a.rules.Peer)
	}
	held := a.store.Count(k)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ledger.reset(k)
	a.rows[k], a.listing = held, ""
	if marked && held <= a.rules.Limits.Rows[k] && (a.whole[k] || a.bytes[k] == 0) {
		a.rows[k], a.bytes[k], a.listing = 0, 0, k
	}
	a.whole[k] = false
}

// End ends the list of a kind. complete tells whether rows that were not in it
// are gone.
func (a *Admission) End(k wire.Kind, complete bool) {
	if k == wire.KindNode {
		a.claims.EndList(a.rules.Peer, complete)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if complete && a.listing != k && a.ledger.has(k, OverLimit) {
		a.relist() // there is room now
	}
	a.listing, a.whole[k] = "", complete
}

// Admit returns those of rows, all of one kind, that are admitted.
func (a *Admission) Admit(rows []kvstore.Row) []kvstore.Row {
	out := rows[:0]
	counted := false
	for _, row := range rows {
		if a.admit(row, &counted) {
			out = append(out, row)
		}
	}
	return out
}

func (a *Admission) admit(row kvstore.Row, counted *bool) bool {
	v := judgeRow(a.rules, row.Key, row.Value)
	kind := kindOf(row.Key)
	if v.refusal == nil && !v.skip {
		v.refusal = a.overLimit(kind, row, counted)
	}
	if v.refusal == nil && v.node != nil {
		v.refusal = a.claims.Claim(*v.node)
	} else if kind == wire.KindNode {
		a.claims.Forget(a.nodeKey(row.Key))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case v.skip:
		return false
	case v.refusal != nil:
		a.ledger.refuse(kind, row.Key, v.refusal)
		return false
	}
	a.ledger.clear(row.Key)
	a.rows[kind]++
	if kind != wire.KindHeartbeat { // one small row, of which no list makes the count anew
		a.bytes[kind] += int64(len(row.Key) + len(row.Value))
	}
	return true
}

// overLimit counts a change of a row like a new one, so that counts are never
// too small. When they reach the limit outside of a list, the store is asked,
// once for a batch, since it does not know of the batch's own rows yet.
func (a *Admission) overLimit(k wire.Kind, row kvstore.Row, counted *bool) *Refusal {
	a.mu.Lock()
	n, bytes, listing := a.rows[k], int64(0), a.listing == k
	for _, b := range a.bytes {
		bytes += b
	}
	a.mu.Unlock()
	most := a.rules.Limits.Rows[k]
	if n >= most && !listing && !*counted {
		n, *counted = a.store.Count(k), true
		a.mu.Lock()
		a.rows[k] = n
		a.mu.Unlock()
	}
	if n >= most && (listing || a.store.Size(row.Key) < 0) {
		return refuse(OverLimit, "more than %d rows of kind %s (spec.import.limits)", most, k)
	}
	bytes += int64(len(row.Key) + len(row.Value))
	budget := a.rules.Limits.Bytes
	if !listing {
		if bytes > budget {
			a.relist() // counts anew: changed rows have been counted twice
		}
		budget *= 2
	}
	if bytes > budget && (listing || a.store.Size(row.Key) < len(row.Value)) { // else it takes no more than it has
		return refuse(OverLimit, "all rows together have more than %d bytes", a.rules.Limits.Bytes)
	}
	return nil
}

// Gone is told of rows that the peer has deleted.
func (a *Admission) Gone(k wire.Kind, keys []string) {
	if k == wire.KindNode {
		for _, key := range keys {
			a.claims.Forget(a.nodeKey(key))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range keys {
		a.ledger.clear(key)
	}
	// The rows are not counted down: a peer may delete what it never had. At
	// the limit the store is asked.
	if a.ledger.has(k, OverLimit) {
		a.relist()
	}
}

// Header judges the cluster row, on which everything else rests.
func (a *Admission) Header(value []byte) (wire.Cluster, *Refusal) {
	c, ref := judgeHeader(a.rules, value)
	if ref != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ledger.refuse(wire.KindCluster, string(wire.KindCluster), ref)
	}
	return c, ref
}

// Refused counts the rows that are refused now, by reason.
func (a *Admission) Refused() []status.Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.report()
}

func (a *Admission) nodeKey(key string) model.NodeKey {
	return model.NodeKey{Cluster: a.rules.Peer, Name: strings.TrimPrefix(key, wire.KindPrefix(wire.KindNode))}
}

// kindOf is the kind that a key's prefix stands for, whatever follows.
func kindOf(key string) wire.Kind {
	kind, _, _ := strings.Cut(key, "/")
	return wire.Kind(kind)
}

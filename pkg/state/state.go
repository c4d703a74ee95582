// Package state holds what sources have reported: tables of rows, one claim
// per source and key. It owns no goroutine and does no I/O. A channel carries
// only the wake-up; readers look at the table, whole or at what differs since
// they last did, so no code depends on seeing a particular event.
package state

import (
	"maps"
	"slices"
	"sync"
)

// Table is a set of rows by key. Several sources may claim the same key; the
// claim of the source whose name sorts first is the row. It is safe for
// concurrent use.
type Table[K, V comparable] struct {
	mu       sync.Mutex
	claims   map[string]map[K]V // guarded by mu: source → its rows
	expected map[string]bool    // guarded by mu: source → has it reported a full list
	subs     []chan struct{}    // guarded by mu

	followers []*Changes[K, V] // guarded by mu
	version   uint64           // guarded by mu
}

// New returns an empty table that expects no source.
func New[K, V comparable]() *Table[K, V] {
	return &Table[K, V]{claims: map[string]map[K]V{}, expected: map[string]bool{}}
}

// Expect names sources that have to report once before Synced is true.
func (t *Table[K, V]) Expect(sources ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sources {
		if _, known := t.expected[s]; !known {
			t.expected[s] = false
			t.version++
		}
	}
}

// Synced tells whether every expected source has reported a full list. Until
// then a missing row means "not known yet", and nothing may be deleted for it.
func (t *Table[K, V]) Synced() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.syncedLocked()
}

func (t *Table[K, V]) syncedLocked() bool {
	for _, done := range t.expected {
		if !done {
			return false
		}
	}
	return true
}

// Update sets and deletes rows that source claims.
func (t *Table[K, V]) Update(source string, set map[K]V, del []K) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := t.claims[source]
	if rows == nil {
		rows = map[K]V{}
		t.claims[source] = rows
	}
	changed := false
	for k, v := range set {
		if old, ok := rows[k]; !ok || old != v {
			rows[k], changed = v, true
			t.touchLocked(k)
		}
	}
	for _, k := range del {
		if _, ok := rows[k]; ok {
			delete(rows, k)
			changed = true
			t.touchLocked(k)
		}
	}
	if changed {
		t.wakeLocked()
	}
}

// Replace makes rows, which the caller must not touch afterwards, all that
// source claims: it is an authoritative list, and source has now reported.
func (t *Table[K, V]) Replace(source string, rows map[K]V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.expected[source]
	t.expected[source] = true
	if !first && maps.Equal(t.claims[source], rows) {
		return
	}
	t.touchDifferenceLocked(t.claims[source], rows)
	t.claims[source] = rows
	t.wakeLocked()
}

// Drop forgets a source and all that it claimed.
func (t *Table[K, V]) Drop(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, known := t.expected[source]
	if !known && t.claims[source] == nil {
		return
	}
	t.touchDifferenceLocked(t.claims[source], nil)
	delete(t.expected, source)
	delete(t.claims, source)
	t.wakeLocked()
}

// Sources returns the names of all sources that claim rows or are expected,
// with whether each has reported a full list.
func (t *Table[K, V]) Sources() map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := maps.Clone(t.expected)
	for s := range t.claims {
		if _, ok := out[s]; !ok {
			out[s] = false
		}
	}
	return out
}

// Snapshot returns a copy of the rows, and whether every expected source has
// reported; both of the same instant.
func (t *Table[K, V]) Snapshot() (rows map[K]V, synced bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, r := range t.claims {
		n += len(r)
	}
	rows = make(map[K]V, n)
	for _, source := range slices.Backward(slices.Sorted(maps.Keys(t.claims))) {
		maps.Copy(rows, t.claims[source]) // the first name last: its claims win
	}
	return rows, t.syncedLocked()
}

// Rows returns a copy of the rows.
func (t *Table[K, V]) Rows() map[K]V {
	rows, _ := t.Snapshot()
	return rows
}

// Get returns the row at k.
func (t *Table[K, V]) Get(k K) (v V, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.getLocked(k)
}

func (t *Table[K, V]) getLocked(k K) (v V, ok bool) {
	best := ""
	for source, claimed := range t.claims {
		if x, here := claimed[k]; here && (!ok || source < best) {
			v, ok, best = x, true, source
		}
	}
	return v, ok
}

// Len is the number of claims.
func (t *Table[K, V]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, r := range t.claims {
		n += len(r)
	}
	return n
}

// Subscribe returns a channel that is readable after any change since it was
// last read. It is readable at once, so that a new reader looks at the table.
func (t *Table[K, V]) Subscribe() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := make(chan struct{}, 1)
	c <- struct{}{}
	t.subs = append(t.subs, c)
	return c
}

// Version is a number that changes whenever anything else of the table does.
func (t *Table[K, V]) Version() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version
}

// wakeLocked leaves a wake-up with every subscriber; it never blocks.
func (t *Table[K, V]) wakeLocked() {
	t.version++
	for _, c := range t.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Fake is a Target in memory with a target's real semantics: it holds state,
// prints it, can be edited behind the loop's back and told to refuse rows.
type Fake[K, V comparable] struct {
	mu     sync.Mutex
	rows   map[K]V     // guarded by mu
	refuse map[K]error // guarded by mu
	down   error       // guarded by mu
	log    []string    // guarded by mu
}

// NewFake returns a target that holds rows.
func NewFake[K, V comparable](rows map[K]V) *Fake[K, V] {
	return &Fake[K, V]{rows: maps.Clone(rows), refuse: map[K]error{}}
}

// List implements Target.
func (f *Fake[K, V]) List(context.Context) (map[K]V, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	out := map[K]V{}
	maps.Copy(out, f.rows)
	return out, nil
}

// Apply implements Target.
func (f *Fake[K, V]) Apply(_ context.Context, set map[K]V, del []K) map[K]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	failed := map[K]error{}
	if f.rows == nil {
		f.rows = map[K]V{}
	}
	var did []string
	for k, v := range set {
		if err := cmpErr(f.refuse[k], f.down); err != nil {
			failed[k] = err
			continue
		}
		f.rows[k] = v
		did = append(did, fmt.Sprintf("set %v=%v", k, v))
	}
	slices.Sort(did)
	f.log = append(f.log, did...)
	did = nil
	for _, k := range del {
		if err := cmpErr(f.refuse[k], f.down); err != nil {
			failed[k] = err
			continue
		}
		delete(f.rows, k)
		did = append(did, fmt.Sprintf("del %v", k))
	}
	slices.Sort(did)
	f.log = append(f.log, did...)
	return failed
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// Edit changes rows behind the loop's back.
func (f *Fake[K, V]) Edit(edit func(rows map[K]V)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit(f.rows)
}

// Refuse makes changes of k fail with err; nil allows them again.
func (f *Fake[K, V]) Refuse(k K, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse[k] = err
}

// Break makes everything fail with err; nil mends it.
func (f *Fake[K, V]) Break(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// TakeLog returns what was done since it was last asked, sets before deletes.
func (f *Fake[K, V]) TakeLog() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.log
	f.log = nil
	return out
}

// String prints the rows, sorted.
func (f *Fake[K, V]) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for k, v := range f.rows {
		lines = append(lines, fmt.Sprintf("%v=%v", k, v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

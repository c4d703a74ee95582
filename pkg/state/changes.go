package state

// Changes are the rows of a table that changed since they were last taken, for
// readers to whom looking at the whole table is too much.
type Changes[K, V comparable] struct {
	// C is readable after a change, and once at the beginning.
	C     <-chan struct{}
	table *Table[K, V]
	dirty map[K]struct{} // guarded by table.mu
}

// Follow returns the changes of t; the first to be taken are all rows.
func (t *Table[K, V]) Follow() *Changes[K, V] {
	c := &Changes[K, V]{C: t.Subscribe(), table: t, dirty: map[K]struct{}{}}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, rows := range t.claims {
		for k := range rows {
			c.dirty[k] = struct{}{}
		}
	}
	t.followers = append(t.followers, c)
	return c
}

// Take returns the rows that were set and the keys that are gone since the last
// call, and whether every expected source has reported; all of the same instant.
func (c *Changes[K, V]) Take() (set map[K]V, del []K, synced bool) {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	set = make(map[K]V, len(c.dirty))
	for k := range c.dirty {
		if v, ok := t.getLocked(k); ok {
			set[k] = v
		} else {
			del = append(del, k)
		}
	}
	c.dirty = map[K]struct{}{} // ranging over a large map that has emptied would stay slow
	return set, del, t.syncedLocked()
}

// touchLocked notes a key for all followers.
func (t *Table[K, V]) touchLocked(k K) {
	for _, c := range t.followers {
		c.dirty[k] = struct{}{}
	}
}

// touchDifferenceLocked notes the keys in which two sets of rows differ.
func (t *Table[K, V]) touchDifferenceLocked(a, b map[K]V) {
	if len(t.followers) == 0 {
		return
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			t.touchLocked(k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			t.touchLocked(k)
		}
	}
}

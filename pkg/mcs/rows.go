package mcs

// Changes are rows that were set and keys that are gone.
type Changes[K, V comparable] struct {
	Set map[K]V
	Del []K
}

// rows changes rows and notes which.
type rows[K, V comparable] struct {
	all     map[K]V
	touched map[K]bool
}

func newRows[K, V comparable]() rows[K, V] { return rows[K, V]{map[K]V{}, map[K]bool{}} }

func (r *rows[K, V]) put(k K, v V) {
	if old, ok := r.all[k]; !ok || old != v {
		r.all[k], r.touched[k] = v, true
	}
}

func (r *rows[K, V]) drop(k K) {
	if _, ok := r.all[k]; ok {
		delete(r.all, k)
		r.touched[k] = true
	}
}

// take returns what was touched since the last call.
func (r *rows[K, V]) take() Changes[K, V] {
	c := Changes[K, V]{Set: make(map[K]V, len(r.touched))}
	for k := range r.touched {
		if v, ok := r.all[k]; ok {
			c.Set[k] = v
		} else {
			c.Del = append(c.Del, k)
		}
	}
	r.touched = map[K]bool{}
	return c
}

// Package reconcile makes targets hold what is wanted. One loop serves the
// kernel, etcd and the Kubernetes API alike: list what is there, compare, set
// what is missing, then delete what is too much, and do it again after any
// change, after a failure, and now and then in case somebody else meddled.
package reconcile

import "context"

// Target is a place that holds rows of ours: a routing table, an nftables set,
// a prefix in etcd.
type Target[K, V comparable] interface {
	// List returns what is really there and ours. A partial answer is an error.
	List(context.Context) (map[K]V, error)
	// Apply sets rows, then deletes keys, touching nothing else, and returns
	// the rows that could not be brought about; empty means all done.
	Apply(ctx context.Context, set map[K]V, del []K) map[K]error
}

// Watcher is a Target that can tell when somebody else may have changed it.
type Watcher interface {
	// Watch sends a wake-up after foreign changes until ctx ends. It returns
	// early only with an error, and is then started again.
	Watch(ctx context.Context, wake func()) error
}

// Delta is what has to be done to turn actual into wanted.
func Delta[K, V comparable](actual, wanted map[K]V) (set map[K]V, del []K) {
	set = map[K]V{}
	for k, v := range wanted {
		if a, ok := actual[k]; !ok || a != v {
			set[k] = v
		}
	}
	for k := range actual {
		if _, ok := wanted[k]; !ok {
			del = append(del, k)
		}
	}
	return set, del
}

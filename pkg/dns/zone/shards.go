package zone

import (
	"hash/maphash"
	"maps"
	"sync/atomic"
)

// nShards is how many parts of a map change apart from each other: of 10,000
// names a change copies 40.
const nShards = 256

// shards is a map that is read without locks. One goroutine at a time changes it.
type shards[V any] struct {
	seed  maphash.Seed
	parts [nShards]atomic.Pointer[map[string]V]
}

func newShards[V any]() *shards[V] {
	s := &shards[V]{seed: maphash.MakeSeed()}
	for i := range s.parts {
		s.parts[i].Store(&map[string]V{})
	}
	return s
}

func (s *shards[V]) get(key []byte) (v V, ok bool) {
	v, ok = (*s.parts[maphash.Bytes(s.seed, key)%nShards].Load())[string(key)]
	return v, ok
}

// update sets and deletes, copying each part that changes once.
func (s *shards[V]) update(set map[string]V, del []string) {
	changed := map[uint64]map[string]V{}
	part := func(key string) map[string]V {
		i := maphash.String(s.seed, key) % nShards
		if changed[i] == nil {
			changed[i] = maps.Clone(*s.parts[i].Load())
		}
		return changed[i]
	}
	for k, v := range set {
		part(k)[k] = v
	}
	for _, k := range del {
		delete(part(k), k)
	}
	for i, m := range changed {
		s.parts[i].Store(&m)
	}
}

package kvstore

import (
	"context"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/state"
)

// TableOptions of a TableSink. Keys of rows begin with their kind.
type TableOptions[K, V comparable] struct {
	// Source is the name under which a group claims rows of the table.
	Source func(group string) string
	// Key is the row's key in the table.
	Key func(group, key string) (K, error)
	// Decode reads the row's value.
	Decode func(group, key string, value []byte) (V, error)
	// Refused is told of each row that can't be decoded, and with a nil error
	// when it is gone or good again. It may be nil.
	Refused func(group, key string, err error)
}

// TableSink fills a table with the rows of one kind; see ByKind for several. A
// row that can't be decoded is withdrawn and stops nothing.
type TableSink[K, V comparable] struct {
	table *state.Table[K, V]
	opt   TableOptions[K, V]

	set       map[K]V    // of the part that is being listed, or of a batch
	del       map[K]bool // rows of it that are refused or gone; disjoint from set
	vouched   bool       // its list is complete
	cluster   uint64     // whose list was taken in last
	listed    map[string]bool
	listing   map[string]bool
	listingOf uint64
	refused   map[refusal]bool
}

type refusal struct{ group, key string }

// NewTableSink returns a sink that fills t.
func NewTableSink[K, V comparable](t *state.Table[K, V], opt TableOptions[K, V]) *TableSink[K, V] {
	if opt.Refused == nil {
		opt.Refused = func(string, string, error) {}
	}
	return &TableSink[K, V]{table: t, opt: opt, listed: map[string]bool{}, listing: map[string]bool{}, refused: map[refusal]bool{}}
}

// BeginList implements Sink.
func (s *TableSink[K, V]) BeginList(_ context.Context, l ListInfo) error {
	s.listing, s.listingOf = map[string]bool{}, l.ClusterID
	return nil
}

// BeginPart implements Sink.
func (s *TableSink[K, V]) BeginPart(_ context.Context, p Part, synced []byte) error {
	s.set, s.del, s.vouched = map[K]V{}, map[K]bool{}, synced != nil
	s.listing[p.Group] = true
	s.forgive(p.Group) // what is still bad comes again
	return nil
}

// forgive forgets what a group was refused.
func (s *TableSink[K, V]) forgive(group string) {
	for r := range s.refused {
		if r.group == group {
			s.good(r)
		}
	}
}

// Rows implements Sink.
func (s *TableSink[K, V]) Rows(_ context.Context, p Part, rows []Row) error {
	for _, row := range rows {
		s.take(p.Group, row)
	}
	return nil
}

// take sorts a row into those to set and those to withdraw.
func (s *TableSink[K, V]) take(group string, row Row) {
	id := refusal{group, row.Key}
	k, err := s.opt.Key(group, row.Key)
	if err != nil {
		s.bad(id, err) // nothing can be held under a key that is none
		return
	}
	v, err := s.opt.Decode(group, row.Key, row.Value)
	if err != nil {
		s.bad(id, err)
		s.withdraw(k)
		return
	}
	s.good(id)
	s.set[k] = v
	delete(s.del, k)
}

func (s *TableSink[K, V]) withdraw(k K) {
	delete(s.set, k)
	s.del[k] = true
}

func (s *TableSink[K, V]) bad(r refusal, err error) {
	s.refused[r] = true
	s.opt.Refused(r.group, r.key, err)
}

func (s *TableSink[K, V]) good(r refusal) {
	if s.refused[r] {
		delete(s.refused, r)
		s.opt.Refused(r.group, r.key, nil)
	}
}

// EndPart implements Sink.
func (s *TableSink[K, V]) EndPart(_ context.Context, p Part) error {
	if s.vouched {
		s.table.Replace(s.opt.Source(p.Group), s.set)
	} else {
		s.table.Update(s.opt.Source(p.Group), s.set, slices.Collect(maps.Keys(s.del)))
	}
	s.set, s.del = nil, nil
	return nil
}

// EndList implements Sink. A group that has gone from a store which held it was
// removed on purpose; one that is missing in another store may yet come.
func (s *TableSink[K, V]) EndList(context.Context) error {
	if s.listingOf == s.cluster {
		for group := range s.listed {
			if !s.listing[group] {
				s.forgive(group)
				s.table.Drop(s.opt.Source(group))
			}
		}
	}
	s.cluster, s.listed = s.listingOf, s.listing
	return nil
}

// Events implements Sink.
func (s *TableSink[K, V]) Events(_ context.Context, events []Event) error {
	for len(events) > 0 {
		group := events[0].Part.Group
		n := 0
		s.set, s.del = map[K]V{}, map[K]bool{}
		for n < len(events) && events[n].Part.Group == group {
			s.event(events[n])
			n++
		}
		s.listed[group] = true
		s.table.Update(s.opt.Source(group), s.set, slices.Collect(maps.Keys(s.del)))
		events = events[n:]
	}
	s.set, s.del = nil, nil
	return nil
}

// event takes in one change; the last one of a row counts.
func (s *TableSink[K, V]) event(e Event) {
	if !e.Deleted {
		s.take(e.Part.Group, e.Row)
		return
	}
	s.good(refusal{e.Part.Group, e.Key})
	if k, err := s.opt.Key(e.Part.Group, e.Key); err == nil {
		s.withdraw(k)
	}
}

// Package kvstore reads and writes the mesh's rows in etcd. A Reader lists a
// prefix at one revision and then follows it from the next one, through any
// number of failures, and hands the rows to a Sink. Two sinks are here: one
// fills a table, one copies into another etcd. Writing goes through Target,
// the reconcile target of a prefix, and Heartbeat.
package kvstore

import (
	"context"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Part is what a reader lists in one go: the rows of one kind, of one group
// where keys are grouped (by peer, in the mirror).
type Part struct {
	Group string
	Kind  wire.Kind
}

// Row is a row of a Part. Key begins with the kind, without the group:
// "node/n1", "cluster". The receiver may keep Value but must not change it.
type Row struct {
	Key   string
	Value []byte
}

// Event is a change of a row.
type Event struct {
	Part Part
	Row
	Deleted bool // then Value is empty
}

// ListInfo says where a list comes from.
type ListInfo struct {
	Endpoint  string
	ClusterID uint64 // tells data directories apart
	Revision  int64
	// Resumed says that these are the sink's own rows, which it held when its
	// process ended: some kinds, for what is decided from them to be known again.
	Resumed bool
}

// Sink takes in what a Reader reads. All calls come from one goroutine:
//
//	BeginList { BeginPart Rows* EndPart }* EndList
//	{ Events | BeginPart Rows* EndPart }*     until the next BeginList
//
// A part comes again, on its own, when its source has become able to vouch for
// it. After an error, and after a call that is followed by another BeginList
// instead of what should follow, the reader lists everything again.
type Sink interface {
	BeginList(ctx context.Context, l ListInfo) error
	// BeginPart begins the full list of a part. synced is the value of the
	// source's mark for the kind. If it is nil the source can't yet vouch that
	// the list is complete: rows that are not in it must be kept.
	BeginPart(ctx context.Context, p Part, synced []byte) error
	// Rows are some of the part, in ascending order of keys.
	Rows(ctx context.Context, p Part, rows []Row) error
	EndPart(ctx context.Context, p Part) error
	EndList(ctx context.Context) error
	// Events are all changes that wait, in the order they were made.
	Events(ctx context.Context, events []Event) error
}

// Position is how far a sink has come.
type Position struct {
	ClusterID uint64
	Revision  int64
	Vouched   []wire.Kind // kinds whose last list had a mark
}

// Resumer is a Sink that still has its rows after a restart, and knows how far
// it had come. Only sinks without groups can be resumed.
type Resumer interface {
	Sink
	// Reaching is called before Events and EndList: if that succeeds, the sink
	// has taken in all up to pos.
	Reaching(pos Position)
	// Reached returns the last position; ok is false if it is not known.
	Reached(ctx context.Context) (pos Position, ok bool, err error)
	// Held reads the rows of a kind back, in ascending order.
	Held(ctx context.Context, kind wire.Kind, page func([]Row) error) error
}

// ByKind is a Sink that hands each part to the sink of its kind. Kinds without
// one are dropped.
func ByKind(sinks map[wire.Kind]Sink) Sink { return byKind(sinks) }

type byKind map[wire.Kind]Sink

func (s byKind) BeginList(ctx context.Context, l ListInfo) error {
	for _, sink := range s {
		if err := sink.BeginList(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (s byKind) BeginPart(ctx context.Context, p Part, synced []byte) error {
	if sink := s[p.Kind]; sink != nil {
		return sink.BeginPart(ctx, p, synced)
	}
	return nil
}

func (s byKind) Rows(ctx context.Context, p Part, rows []Row) error {
	if sink := s[p.Kind]; sink != nil {
		return sink.Rows(ctx, p, rows)
	}
	return nil
}

func (s byKind) EndPart(ctx context.Context, p Part) error {
	if sink := s[p.Kind]; sink != nil {
		return sink.EndPart(ctx, p)
	}
	return nil
}

func (s byKind) EndList(ctx context.Context) error {
	for _, sink := range s {
		if err := sink.EndList(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s byKind) Events(ctx context.Context, events []Event) error {
	split := map[wire.Kind][]Event{}
	for _, e := range events {
		split[e.Part.Kind] = append(split[e.Part.Kind], e)
	}
	for _, kind := range wire.Kinds() { // what a row refers to goes first
		if sink := s[kind]; sink != nil && len(split[kind]) > 0 {
			if err := sink.Events(ctx, split[kind]); err != nil {
				return err
			}
		}
	}
	return nil
}

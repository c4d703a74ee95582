package mesh

import (
	"context"
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// peerSink copies admitted rows into the mirror, and notes what the link wants
// to know in passing. A cluster row that can't be read, or names another
// cluster, stops the whole peer: what was admitted before stays.
type peerSink struct {
	*kvstore.CopySink
	link   *link
	marked bool // the part that is being listed is complete
}

// BeginList implements kvstore.Sink.
func (s *peerSink) BeginList(ctx context.Context, l kvstore.ListInfo) error {
	if l.Resumed {
		s.link.admission.Resume()
	}
	return s.CopySink.BeginList(ctx, l)
}

// BeginPart implements kvstore.Sink.
func (s *peerSink) BeginPart(ctx context.Context, p kvstore.Part, synced []byte) error {
	s.marked = synced != nil
	s.link.admission.Begin(p.Kind, s.marked)
	return s.CopySink.BeginPart(ctx, p, synced)
}

// Rows implements kvstore.Sink.
func (s *peerSink) Rows(ctx context.Context, p kvstore.Part, rows []kvstore.Row) error {
	for _, row := range rows {
		if err := s.look(p, row); err != nil {
			return err
		}
	}
	return s.CopySink.Rows(ctx, p, rows)
}

// EndPart implements kvstore.Sink.
func (s *peerSink) EndPart(ctx context.Context, p kvstore.Part) error {
	if err := s.CopySink.EndPart(ctx, p); err != nil {
		return err
	}
	s.link.admission.End(p.Kind, s.marked)
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.link.marked[p.Kind] = s.marked
	s.link.stale = true
	return nil
}

// Events implements kvstore.Sink.
func (s *peerSink) Events(ctx context.Context, events []kvstore.Event) error {
	start := time.Now()
	rows := false
	for _, e := range events {
		if !e.Deleted {
			if err := s.look(e.Part, e.Row); err != nil {
				return err
			}
		}
		rows = rows || e.Part.Kind != wire.KindHeartbeat
	}
	if err := s.CopySink.Events(ctx, events); err != nil {
		return err
	}
	if rows {
		s.link.opt.Meter.Propagated(len(events), time.Since(start))
		s.link.mu.Lock()
		s.link.stale = true
		s.link.mu.Unlock()
	}
	return nil
}

// look reads the rows that speak for the peer itself.
func (s *peerSink) look(p kvstore.Part, row kvstore.Row) error {
	switch p.Kind {
	case wire.KindCluster:
		h, ref := s.link.admission.Header(row.Value)
		if ref != nil {
			return fmt.Errorf("cluster row of %s: %w", s.link.rules.Peer, ref)
		}
		s.link.setHeader(h)
	case wire.KindHeartbeat:
		s.link.beat(row.Value)
	}
	return nil
}

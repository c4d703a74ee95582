package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Order is something to do.
type Order struct {
	Do string
	// Count nodes for "nodes"; for "change", Count stamps from First on, Rate of
	// them per second, or all at once if that is 0.
	First uint64
	Count int
	Rate  int
	// Move gives changed nodes another address.
	Move bool
	// Peer and Node are what "put" and "withdraw" are about.
	Peer, Node int
}

// What an Order may be.
const (
	Nodes    = "nodes"    // every peer has Count nodes now
	Change   = "change"   // nodes of all peers in turn get new stamps
	Put      = "put"      // a node is there, with stamp First
	Withdraw = "withdraw" // and gone
)

// due is when the change that is i-th of an order begun at that time has to be
// written. It does not wait for those before it.
func (o Order) due(began time.Time, i int) time.Time {
	if o.Rate == 0 {
		return began
	}
	return began.Add(time.Duration(i) * time.Second / time.Duration(o.Rate))
}

// Answer comes when an order has been carried out.
type Answer struct {
	Began, Ended time.Time
	Error        string
}

// PerSecond is how many of count changes a second were written, in whole ones:
// the last write ends after it was due, even if none is late.
func (a Answer) PerSecond(count int) float64 {
	return math.Round(float64(count) / a.Ended.Sub(a.Began).Seconds())
}

// obey carries out orders until in ends.
func (s *source) obey(ctx context.Context, dec *json.Decoder, enc *json.Encoder) error {
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a := Answer{Began: time.Now()}
		if err := s.carryOut(ctx, o); err != nil {
			a.Error = err.Error()
		}
		a.Ended = time.Now()
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

func (s *source) carryOut(ctx context.Context, o Order) error {
	switch o.Do {
	case Nodes:
		return s.setNodes(ctx, o.Count)
	case Change:
		return s.change(ctx, o)
	case Put:
		_, err := s.store.Do(ctx, putNode(o.Peer, o.Node, 0, Stamp{o.First, time.Now()}))
		return err
	case Withdraw:
		_, err := s.store.Delete(ctx, nodeRow(o.Peer, o.Node))
		return err
	}
	return fmt.Errorf("order %q is not known", o.Do)
}

func (s *source) setNodes(ctx context.Context, count int) error {
	for peer := range s.spec.Peers {
		rows := map[string]string{}
		for n := range count {
			rows[wire.NodeTail(NodeName(n)).String()] = string(wire.EncodeNode(Node(peer, n, 0, Stamp{})))
		}
		if err := s.apply(ctx, peer, rows); err != nil {
			return err
		}
	}
	s.spec.Nodes = count
	return nil
}

// change writes each change when it is due, or at once if it is late by then. The
// stamps tell when they were due: a writer that falls behind is part of the way
// that a change takes, and must not make the others look faster.
func (s *source) change(ctx context.Context, o Order) error {
	began := time.Now()
	if o.Rate == 0 {
		return s.burst(ctx, o, began)
	}
	for i := range o.Count {
		pause(ctx, time.Until(o.due(began, i)))
		if _, err := s.store.Do(ctx, s.nextChange(o, began, i)); err != nil {
			return err
		}
	}
	return nil
}

// burst writes as fast as the store takes it.
func (s *source) burst(ctx context.Context, o Order, began time.Time) error {
	for from := 0; from < o.Count; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(from+100, o.Count); i++ {
			ops = append(ops, s.nextChange(o, began, i))
		}
		if _, err := s.store.Txn(ctx).Then(ops...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// nextChange goes round all peers, and round their nodes more slowly.
func (s *source) nextChange(o Order, began time.Time, i int) clientv3.Op {
	number := o.First + uint64(i)
	peer, node, home := int(number)%s.spec.Peers, int(number)/s.spec.Peers%s.spec.Nodes, 0
	if o.Move {
		home = 1 - int(number)/s.spec.Peers/s.spec.Nodes%2
	}
	return putNode(peer, node, home, Stamp{number, o.due(began, i)})
}

func putNode(peer, node, home int, stamp Stamp) clientv3.Op {
	return clientv3.OpPut(nodeRow(peer, node), string(wire.EncodeNode(Node(peer, node, home, stamp))))
}

func nodeRow(peer, node int) string {
	return wire.ExportPrefix(Name(peer)) + wire.NodeTail(NodeName(node)).String()
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

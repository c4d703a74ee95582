package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// Answer comes when an order has been carried out.
type Answer struct {
	Began, Ended time.Time
	Error        string
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
		_, err := s.store.Do(ctx, putNode(o.Peer, o.Node, 0, o.First))
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

func (s *source) change(ctx context.Context, o Order) error {
	if o.Rate == 0 {
		return s.burst(ctx, o)
	}
	began := time.Now()
	for i := range o.Count {
		pause(ctx, time.Until(began.Add(time.Duration(i)*time.Second/time.Duration(o.Rate))))
		if _, err := s.store.Do(ctx, s.nextChange(o, i)); err != nil {
			return err
		}
	}
	return nil
}

// burst writes as fast as the store takes it.
func (s *source) burst(ctx context.Context, o Order) error {
	for from := 0; from < o.Count; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(from+100, o.Count); i++ {
			ops = append(ops, s.nextChange(o, i))
		}
		if _, err := s.store.Txn(ctx).Then(ops...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// nextChange goes round all peers, and round their nodes more slowly.
func (s *source) nextChange(o Order, i int) clientv3.Op {
	number := o.First + uint64(i)
	peer, node, home := int(number)%s.spec.Peers, int(number)/s.spec.Peers%s.spec.Nodes, 0
	if o.Move {
		home = 1 - int(number)/s.spec.Peers/s.spec.Nodes%2
	}
	return putNode(peer, node, home, number)
}

func putNode(peer, node, home int, number uint64) clientv3.Op {
	n := Node(peer, node, home, Stamp{number, time.Now()})
	return clientv3.OpPut(nodeRow(peer, node), string(wire.EncodeNode(n)))
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

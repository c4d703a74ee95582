package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
	"github.com/clustermesh/clustermesh/test/bench/peers"
)

// follow starts the local reader.
func (m *mirrorRun) follow(ctx context.Context) error {
	conf, err := m.cluster.agentTLS(ctx)
	if err != nil {
		return err
	}
	m.reader, err = startReader(ctx, m.Cluster, conf)
	return err
}

// followRest has the rows that are no nodes followed too. It comes after what is
// timed under load, for no agent makes the API server serve them.
func (m *mirrorRun) followRest(ctx context.Context) error {
	conf, err := m.cluster.agentTLS(ctx)
	if err != nil {
		return err
	}
	if m.rest, err = startRest(ctx, m.Cluster, conf); err != nil {
		return err
	}
	if got, want := m.held(), m.Peers*peerShape.Rows(); got != want {
		return fmt.Errorf("the readers hold %d rows, want %d", got, want)
	}
	return nil
}

// held is how many rows the readers hold, of all kinds that the peers have many of.
func (m *mirrorRun) held() int { return m.reader.table.Len() + m.rest.table.Len() }

// rows counts all that is mirrored. The header says as of which revision.
func (m *mirrorRun) rows(ctx context.Context) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	got, err := m.client.Get(ctx, wire.MirrorPrefix(m.Cluster, ""), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, fmt.Errorf("count rows of the mirror: %w", err)
	}
	return got, nil
}

// changed is how changes went.
type changed struct {
	took      []time.Duration // each, since it was due at the source
	all       time.Duration   // since the first was written
	perSecond float64         // so many the source wrote
}

// change has the source make changes, and waits until they are here.
func (m *mirrorRun) change(ctx context.Context, count, rate int) (c changed, err error) {
	arrived := m.reader.expect(m.next, count)
	answer, err := m.source.Do(peers.Order{Do: peers.Change, First: m.next, Count: count, Rate: rate})
	if err != nil {
		return c, err
	}
	m.next += uint64(count)
	if err := wait(ctx, arrived, 30*time.Second, fmt.Sprintf("%d changes to arrive", count)); err != nil {
		return c, err
	}
	took, last := m.reader.arrived()
	c = changed{took: took, all: last.Sub(answer.Began), perSecond: answer.PerSecond(count)}
	progress("%d changes written in %.2f s, all here after %.2f s", count, answer.Ended.Sub(answer.Began).Seconds(), c.all.Seconds())
	return c, nil
}

func (m *mirrorRun) idle(ctx context.Context) error {
	if _, err := m.change(ctx, 50, 50); err != nil { // warms up
		return err
	}
	c, err := m.change(ctx, 500, 50)
	if err != nil {
		return err
	}
	p50, p99 := latencies("mirror/change-idle", c.took)
	m.add(p50.atMost(3).reference(2.3), p99.atMost(10).reference(5.4))
	return nil
}

// busy says how many changes a second there really were: latencies under fewer
// would be no answer.
func (m *mirrorRun) busy(ctx context.Context) error {
	const rate = 1000
	c, err := m.change(ctx, 10*rate, rate)
	if err != nil {
		return err
	}
	p50, p99 := latencies("mirror/change-1000-per-s", c.took)
	m.add(p50.atMost(3), p99.atMost(10), figure("mirror/change-1000-per-s-rate", "1/s", c.perSecond).atLeast(rate))
	return nil
}

func (m *mirrorRun) burst(ctx context.Context) error {
	var all []float64
	for range 3 {
		c, err := m.change(ctx, 10000, 0)
		if err != nil {
			return err
		}
		all = append(all, c.all.Seconds())
	}
	mem, err := m.memory("after all changes")
	// Nobody has to lift a limit of ours, so the reference is the one without.
	m.add(figure("mirror/burst-10000", "s", all...).atMost(2).reference(2.9).note("without rate limit; 99 by default"),
		figure("mirror/rss-peak-after-changes", "MiB", mem.Peak).atMost(300))
	return err
}

// restarts kills the API server and starts it, some times.
func (m *mirrorRun) restarts(ctx context.Context) error {
	var fresh, gone []float64
	lost := 0
	for i := range 3 {
		r, err := m.restart(ctx, i)
		if err != nil {
			return fmt.Errorf("restart %d: %w", i+1, err)
		}
		progress("restart %d: a new row after %.2f s, a withdrawn one gone after %.2f s, %d lost", i+1, r.fresh.Seconds(), r.gone.Seconds(), r.lost)
		fresh, gone, lost = append(fresh, r.fresh.Seconds()), append(gone, r.gone.Seconds()), max(lost, r.lost)
	}
	m.add(figure("mirror/restart-new-row", "s", fresh...).atMost(3).reference(75),
		figure("mirror/restart-withdrawn-row", "s", gone...).atMost(5).reference(897),
		figure("mirror/restart-lost", "rows", float64(lost)).atMost(0))
	return nil
}

// restarted is how it went, counted from the start of the new process.
type restarted struct {
	fresh, gone time.Duration
	lost        int // rows that the readers missed at any time
}

func (m *mirrorRun) restart(ctx context.Context, i int) (r restarted, err error) {
	victim := peers.Order{Do: peers.Withdraw, Peer: i % m.Peers, Node: i}
	added := peers.Order{Do: peers.Put, Peer: (i + 1) % m.Peers, Node: peerShape.Nodes + i, First: m.next}
	seen := m.held()
	before, err := m.rows(ctx)
	if err != nil {
		return r, err
	}
	m.server.kill()
	if _, err := m.source.Do(victim); err != nil {
		return r, err
	}
	started := time.Now()
	if err := m.server.start(); err != nil {
		return r, err
	}
	if _, err := m.source.Do(added); err != nil {
		return r, err
	}
	there := func(o peers.Order) bool {
		_, ok := m.reader.table.Get(model.NodeKey{Cluster: peers.Name(o.Peer), Name: peers.NodeName(o.Node)})
		return ok
	}
	fewest := seen
	look := func() { fewest = min(fewest, m.held()) }
	err = poll(ctx, 2*time.Millisecond, time.Minute, "the reader to see what changed", func() bool {
		if r.fresh == 0 && there(added) {
			r.fresh = time.Since(started)
		}
		if r.gone == 0 && !there(victim) {
			r.gone = time.Since(started)
		}
		look()
		return r.fresh != 0 && r.gone != 0
	})
	if err != nil {
		return r, err
	}
	if _, err := m.memory("restart"); err != nil {
		return r, err
	}
	after, err := m.rows(ctx) // one has come and one has gone
	if err != nil {
		return r, err
	}
	if err := m.rest.catchUp(ctx, after.Header, look); err != nil {
		return r, err
	}
	r.lost = max(0, seen-1-fewest, seen-m.held(), int(before.Count-after.Count))
	return r, nil
}

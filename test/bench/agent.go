package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/wire"
	"github.com/clustermesh/clustermesh/test/bench/peers"
)

// agent measures the agent of an installed node: with no remote node, and with
// thousands that its API server mirrors from a peer.
func (b *bench) agent(ctx context.Context) ([]Result, error) {
	defer b.down(ctx, "benchagent")
	_, node, err := b.oneNode(ctx, "benchagent")
	if err != nil {
		return nil, err
	}
	pids := node.PIDs("clustermesh-agent")
	if len(pids) != 1 {
		return nil, fmt.Errorf("%d processes clustermesh-agent on %s, want 1", len(pids), node.Name)
	}
	return measureOnNode(ctx, node, "agent", agentArg{Cluster: "west", Agent: pids[0], Nodes: b.nodes})
}

type agentArg struct {
	Cluster string
	Agent   int // process
	Nodes   int
}

// agentRun is the measurement, from inside the node.
type agentRun struct {
	agentArg
	source  *peers.Source
	routes  *routeWatch
	results []Result
}

func agentOnNode(ctx context.Context, arg []byte) ([]Result, error) {
	a := &agentRun{}
	if err := json.Unmarshal(arg, &a.agentArg); err != nil {
		return nil, err
	}
	if err := a.add(ctx, "cni/add"); err != nil {
		return nil, err
	}
	const dir = "/var/lib/bench"
	remove, err := freshDir(dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	c, err := openCluster(a.Cluster)
	if err != nil {
		return nil, err
	}
	if a.source, err = c.startPeers(ctx, 1, peers.Shape{}, dir); err != nil {
		return nil, err
	}
	defer a.source.Close()
	if err := a.awaitPeer(ctx, c); err != nil {
		return nil, err
	}
	if a.routes, err = watchRoutes(ctx); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{a.appear, a.move} {
		if err := step(ctx); err != nil {
			return a.results, err
		}
	}
	return a.results, a.add(ctx, fmt.Sprintf("cni/add-%d-nodes", a.Nodes))
}

// awaitPeer waits until the API server has listed the peer, which has no nodes yet.
func (a *agentRun) awaitPeer(ctx context.Context, c *cluster) error {
	conf, err := c.agentTLS(ctx)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{meshAPI}, TLS: conf})
	if err != nil {
		return err
	}
	defer client.Close()
	key := wire.MirrorPrefix(a.Cluster, peers.Name(0)) + wire.SyncedTail(wire.KindNode).String()
	return poll(ctx, 50*time.Millisecond, time.Minute, "the API server to have listed the peer", func() bool {
		got, err := client.Get(ctx, key)
		return err == nil && len(got.Kvs) == 1
	})
}

// destinations are the routes to a node of the peer.
func destinations(node int) []netip.Prefix {
	return peers.Node(0, node, 0, peers.Stamp{}).PodCIDRs.All()
}

// appear has all nodes appear in the peer's etcd at once.
func (a *agentRun) appear(ctx context.Context) error {
	var all []netip.Prefix
	for n := range a.Nodes {
		all = append(all, destinations(n)...)
	}
	progress("%d remote nodes appear", a.Nodes)
	answer, err := a.source.Do(peers.Order{Do: peers.Nodes, Count: a.Nodes})
	if err != nil {
		return err
	}
	var last time.Time
	err = poll(ctx, 50*time.Millisecond, time.Minute, "the routes to all nodes", func() (ok bool) {
		last, ok = a.routes.since(answer.Began, all)
		return ok
	})
	if err != nil || a.routes.lost() {
		return errors.Join(err, lostError(a.routes.lost()))
	}
	mem, err := memoryOf(a.Agent)
	progress("written in %.2f s, %d routes in the kernel after %.2f s; agent %.0f MiB resident, %.0f of them anonymous, %.0f at most",
		answer.Ended.Sub(answer.Began).Seconds(), len(all), last.Sub(answer.Began).Seconds(), mem.Now, mem.Anon, mem.Peak)
	a.results = append(a.results,
		figure(fmt.Sprintf("agent/%d-nodes", a.Nodes), "s", last.Sub(answer.Began).Seconds()).atMost(3),
		figure("agent/rss-peak", "MiB", mem.Peak).atMost(150),
		figure("agent/rss", "MiB", mem.Now))
	return err
}

func lostError(lost bool) error {
	if !lost {
		return nil
	}
	return errors.New("the kernel dropped route notifications")
}

// move gives nodes another address, one after the other, and sees their routes
// of both families follow.
func (a *agentRun) move(ctx context.Context) error {
	progress("nodes change their address, one after the other")
	var took []time.Duration
	const changes = 300
	for n := range changes {
		number := n + 1
		answer, err := a.source.Do(peers.Order{Do: peers.Change, First: uint64(number), Count: 1, Move: true})
		if err != nil {
			return err
		}
		var last time.Time
		err = poll(ctx, 2*time.Millisecond, 10*time.Second, "a changed route", func() (ok bool) {
			last, ok = a.routes.since(answer.Began, destinations(number%a.Nodes))
			return ok
		})
		if err != nil {
			return err
		}
		took = append(took, last.Sub(answer.Began))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // the next one finds all at rest
		}
	}
	p50, p99 := latencies("agent/node-change", took)
	mem, err := memoryOf(a.Agent)
	progress("agent %.0f MiB resident, %.0f at most", mem.Now, mem.Peak)
	a.results = append(a.results, p50.atMost(10), p99.atMost(50),
		figure("agent/rss-peak-after-changes", "MiB", mem.Peak).atMost(150))
	return err
}

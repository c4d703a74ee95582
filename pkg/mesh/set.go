package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Options of a Set.
type Options struct {
	Own   Own
	Store *clientv3.Client // our etcd, which holds the mirror
	Cert  func() pki.Pair  // our certificate towards peers; asked at each dial
	Log   *slog.Logger
	Now   func() time.Time
	Meter Meter // nil: none
	Lists int64 // how many peers are listed at a time; 0: 4
	// Recall returns endpoints that a peer announced in an earlier life of ours,
	// for a store that was lost; nil: none.
	Recall func(ctx context.Context, peer string) []string
	// Callers returns where a peer's own connections to us come from; nil: none.
	Callers func(peer string) []netip.Addr
}

// Meter counts what a Set does.
type Meter interface {
	// Propagated is told how long it took to judge and write some changes.
	Propagated(rows int, took time.Duration)
}

type noMeter struct{}

func (noMeter) Propagated(int, time.Duration) {}

// Set keeps one link per usable Peer object and the mirror free of anybody else.
type Set struct {
	opt    Options
	peers  *state.Table[string, kube.Peer]
	nodes  *state.Table[model.NodeKey, model.Node]
	claims *Claims
	gate   *kvstore.Gate

	mu       sync.Mutex
	verdicts map[string]Verdict   // guarded by mu
	rows     map[string]kube.Peer // guarded by mu: what verdicts were passed on
	links    map[string]*link     // guarded by mu; changed by Run only
}

// NewSet returns the set of the peers in a table. nodes are our own.
func NewSet(opt Options, peers *state.Table[string, kube.Peer], nodes *state.Table[model.NodeKey, model.Node]) *Set {
	if opt.Meter == nil {
		opt.Meter = noMeter{}
	}
	if opt.Lists == 0 {
		opt.Lists = 4
	}
	s := &Set{opt: opt, peers: peers, nodes: nodes, gate: kvstore.NewGate(opt.Lists),
		verdicts: map[string]Verdict{}, rows: map[string]kube.Peer{}, links: map[string]*link{}}
	s.claims = NewClaims(opt.Own, s.relist)
	return s
}

func (s *Set) relist(peer string) {
	s.mu.Lock()
	l := s.links[peer]
	s.mu.Unlock()
	if l != nil {
		l.relist()
	}
}

// Run follows all peers until ctx ends.
func (s *Set) Run(ctx context.Context) error {
	defer s.stopAll()
	peers, nodes := s.peers.Subscribe(), s.nodes.Subscribe()
	var retry <-chan time.Time
	for {
		retry = nil
		if err := s.once(ctx); err != nil && ctx.Err() == nil {
			s.opt.Log.Error("peers not as wanted, retrying", "error", err)
			retry = time.After(2 * time.Second)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-peers:
		case <-nodes:
		case <-retry:
		}
	}
}

// once makes links and mirror what the Peer objects ask for.
func (s *Set) once(ctx context.Context) error {
	own, err := s.ownAddrs(ctx)
	if err != nil {
		return err
	}
	s.claims.SetOwnNodes(own)
	rows, complete := s.peers.Snapshot()
	verdicts := Accept(s.opt.Own, slices.Collect(maps.Values(rows)))
	s.mu.Lock()
	old := s.rows
	s.verdicts, s.rows = verdicts, rows
	s.mu.Unlock()
	for name, l := range s.links {
		gone := verdicts[name].Rules == nil
		if gone && !complete && rows[name] == (kube.Peer{}) {
			continue // not known yet
		}
		if gone || !verdicts[name].Usable() || rows[name].SpecJSON != old[name].SpecJSON {
			s.stop(name, l, gone)
		}
	}
	return errors.Join(s.startMissing(ctx, verdicts), s.sweep(ctx, verdicts, complete))
}

// ownAddrs are the addresses of our own nodes. Until Kubernetes has told all of
// them, what we published before a restart counts as well.
func (s *Set) ownAddrs(ctx context.Context) (out []netip.Addr, err error) {
	nodes, synced := s.nodes.Snapshot()
	for _, n := range nodes {
		out = append(out, nodeAddrs(n)...)
	}
	if synced {
		return out, nil
	}
	err = eachNode(ctx, s.opt.Store, s.opt.Own.Cluster, wire.ExportPrefix(s.opt.Own.Cluster), func(n model.Node) {
		out = append(out, nodeAddrs(n)...)
	})
	return out, err
}

// eachNode goes through the nodes' rows below a prefix of our store.
func eachNode(ctx context.Context, store *clientv3.Client, cluster, prefix string, f func(model.Node)) error {
	from := prefix + wire.KindPrefix(wire.KindNode)
	end := clientv3.GetPrefixRangeEnd(from)
	for next := from; ; {
		resp, err := store.Get(ctx, next, clientv3.WithRange(end), clientv3.WithLimit(1000))
		if err != nil {
			return fmt.Errorf("read nodes below %s: %w", prefix, err)
		}
		for _, kv := range resp.Kvs {
			next = string(kv.Key) + "\x00"
			n, err := wire.DecodeNode(model.NodeKey{Cluster: cluster, Name: string(kv.Key)[len(from):]}, kv.Value)
			if err == nil { // else the next list or export puts it right
				f(n)
			}
		}
		if !resp.More {
			return nil
		}
	}
}

// startMissing starts links, after what all of them held before a restart is
// known again: so nobody takes what another one had.
func (s *Set) startMissing(ctx context.Context, verdicts map[string]Verdict) error {
	held, err := s.mirrored(ctx)
	if err != nil {
		return err
	}
	var start []*link
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		v := verdicts[name]
		if s.links[name] != nil || !v.Usable() {
			continue
		}
		l := newLink(v.Rules, &s.opt, s.claims, s.gate)
		if err := errors.Join(s.enter(ctx, held, name), l.restore(ctx, s.claims)); err != nil {
			return err
		}
		start = append(start, l)
	}
	for _, l := range start {
		linkCtx, cancel := context.WithCancel(ctx)
		l.stop = cancel
		s.mu.Lock()
		s.links[l.rules.Peer] = l
		s.mu.Unlock()
		s.opt.Log.Info("peer starts", "peer", l.rules.Peer, "endpoints", l.rules.Endpoints)
		go l.run(linkCtx) // stop waits for it
	}
	return nil
}

// stop ends a link and waits until it has.
func (s *Set) stop(name string, l *link, gone bool) {
	l.stop()
	<-l.done
	s.mu.Lock()
	delete(s.links, name)
	s.mu.Unlock()
	if gone {
		s.claims.Close(name)
	}
	s.opt.Log.Info("peer stops", "peer", name, "removed", gone)
}

func (s *Set) stopAll() {
	for name, l := range s.links {
		s.stop(name, l, false)
	}
}

// Verdicts is what was made of the Peer objects.
func (s *Set) Verdicts() map[string]Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verdicts
}

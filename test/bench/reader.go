package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
	"github.com/clustermesh/clustermesh/test/bench/peers"
)

// reader reads all peers' nodes from the mesh API server as an agent does, and
// notes when each stamp comes by.
type reader struct {
	table *state.Table[model.NodeKey, model.Node]

	mu    sync.Mutex
	first uint64          // guarded by mu: of the stamps that are waited for
	took  []time.Duration // guarded by mu: since they were due at the source; 0: not here yet
	open  int             // guarded by mu: how many are not here
	all   chan struct{}   // guarded by mu: closed when none is
	last  time.Time       // guarded by mu: when the last one came
}

// startReader follows the mirror of cluster until ctx ends, and returns when it
// has listed it.
func startReader(ctx context.Context, cluster string, conf *tls.Config) (*reader, error) {
	r := &reader{table: state.New[model.NodeKey, model.Node]()}
	sink := kvstore.NewTableSink(r.table, kvstore.TableOptions[model.NodeKey, model.Node]{
		Source: func(peer string) string { return peer },
		Key: func(peer, key string) (model.NodeKey, error) {
			return model.NodeKey{Cluster: peer, Name: strings.TrimPrefix(key, wire.KindPrefix(wire.KindNode))}, nil
		},
		Decode: r.decode,
	})
	_, err := readMirror(ctx, cluster, conf, map[wire.Kind]kvstore.Sink{wire.KindNode: sink})
	return r, err
}

// readMirror fills sinks from the mirror of cluster until ctx ends, and returns
// when it has listed their kinds.
func readMirror(ctx context.Context, cluster string, conf *tls.Config, sinks map[wire.Kind]kvstore.Sink) (*kvstore.Reader, error) {
	listed := make(chan struct{})
	var once sync.Once
	reading := kvstore.NewReader(kvstore.TLSDial(func() (*tls.Config, error) { return conf, nil }),
		func() []string { return []string{meshAPI} },
		kvstore.ByKind(sinks),
		kvstore.ReaderOptions{Prefix: wire.MirrorPrefix(cluster, ""), Grouped: true, Kinds: slices.Sorted(maps.Keys(sinks)),
			OnState: func(s kvstore.State) {
				if s.Synced {
					once.Do(func() { close(listed) })
				}
			}})
	go func() { _ = reading.Run(ctx) }()
	return reading, wait(ctx, listed, time.Minute, "the reader to have listed the mirror")
}

func (r *reader) decode(peer, key string, value []byte) (model.Node, error) {
	now := time.Now()
	n, err := wire.DecodeNode(model.NodeKey{Cluster: peer, Name: strings.TrimPrefix(key, wire.KindPrefix(wire.KindNode))}, value)
	if err == nil {
		r.see(peers.StampOf(n), now)
	}
	return n, err
}

func (r *reader) see(s peers.Stamp, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Number < r.first || s.Number >= r.first+uint64(len(r.took)) || r.took[s.Number-r.first] != 0 {
		return
	}
	r.took[s.Number-r.first] = max(now.Sub(s.At), 1)
	r.last = now
	if r.open--; r.open == 0 {
		close(r.all)
	}
}

// expect begins to wait for count stamps from first on.
func (r *reader) expect(first uint64, count int) (all <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first, r.took, r.open, r.all = first, make([]time.Duration, count), count, make(chan struct{})
	return r.all
}

// arrived is what took how long, and when the last one came.
func (r *reader) arrived() ([]time.Duration, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.took, r.last
}

// wait waits for done.
func wait(ctx context.Context, done <-chan struct{}, within time.Duration, what string) error {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
		return nil
	case <-t.C:
		return fmt.Errorf("waited %v for %s", within, what)
	}
}

// poll asks every so often until ok.
func poll(ctx context.Context, every, within time.Duration, what string, ok func() bool) error {
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s", within, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
	return nil
}

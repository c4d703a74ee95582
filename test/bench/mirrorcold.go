package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/clustermesh/clustermesh/pkg/wire"
	"github.com/clustermesh/clustermesh/test/bench/peers"
)

// coldStart starts the API server with an empty directory, and sees from the
// mesh API when each peer is complete.
func (m *mirrorRun) coldStart(ctx context.Context) error {
	conf, err := m.cluster.agentTLS(ctx)
	if err != nil {
		return err
	}
	progress("cold start")
	started := time.Now()
	if err := m.server.start(); err != nil {
		return err
	}
	if m.client, err = dialMesh(ctx, conf); err != nil {
		return err
	}
	complete, err := m.awaitPeers(ctx, conf, started)
	if err != nil {
		return err
	}
	mem, err := m.memory("cold start")
	if err != nil {
		return err
	}
	rows, err := m.rows(ctx)
	if err != nil {
		return err
	}
	if want := m.Peers * peerShape.Rows(); int(rows.Count) < want {
		return fmt.Errorf("%d rows are served after the cold start, want %d", rows.Count, want)
	}
	m.add(figure("mirror/cold-start", "s", complete[len(complete)-1]).atMost(20).reference(57),
		figure("mirror/cold-start-first-peer", "s", complete[0]),
		figure("mirror/cold-start-median-peer", "s", quantile(complete, 0.5)),
		figure("mirror/rss-peak", "MiB", mem.Peak).atMost(300).reference(1040),
		figure("mirror/rss", "MiB", mem.Now))
	return nil
}

// dialMesh connects to the mesh API. It is tried often until it listens, for
// that is measured.
func dialMesh(ctx context.Context, conf *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{meshAPI}, TLS: conf,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}})}})
}

// awaitPeers waits until every peer's last mark is served, and returns the
// seconds that took, sorted.
func (m *mirrorRun) awaitPeers(ctx context.Context, conf *tls.Config, started time.Time) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	last := wire.SyncedTail(wire.KindExport).String() // of the kind that is listed last
	done := make(chan float64, m.Peers)
	var client *clientv3.Client
	for i := range m.Peers {
		if i%50 == 0 { // a connection may have so many watches and no more
			var err error
			if client, err = dialMesh(ctx, conf); err != nil {
				return nil, err
			}
			defer client.Close()
		}
		key, client := wire.MirrorPrefix(m.Cluster, peers.Name(i))+last, client
		go func() {
			if awaitKey(ctx, client, key) {
				done <- time.Since(started).Seconds()
			}
		}()
	}
	var complete []float64
	for len(complete) < m.Peers {
		select {
		case s := <-done:
			complete = append(complete, s)
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d peers are complete: %w", len(complete), m.Peers, ctx.Err())
		}
	}
	slices.Sort(complete)
	return complete, nil
}

// awaitKey returns true when a key is there. The watch begins before the look,
// so nothing falls between them.
func awaitKey(ctx context.Context, client *clientv3.Client, key string) bool {
	changes := client.Watch(ctx, key, clientv3.WithCreatedNotify())
	for resp := range changes {
		if len(resp.Events) > 0 {
			return true
		}
		if !resp.Created {
			continue
		}
		if got, err := client.Get(ctx, key, clientv3.WithCountOnly()); err == nil && got.Count > 0 {
			return true
		}
	}
	return false
}

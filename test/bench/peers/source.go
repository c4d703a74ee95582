package peers

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Spec says what a source serves, and to whom.
type Spec struct {
	Shape
	Peers   int
	Cluster string // that reads the peers
	CA      string // of it, PEM
	Dir     string // for the store; must not exist
}

// Peer is one of them, as seen from outside.
type Peer struct {
	Name     string
	Endpoint string
	CA       string // PEM
}

// source is the process: one store for all peers, and a front for each.
type source struct {
	spec  Spec
	store *clientv3.Client
	beats uint64
}

// Serve plays the peers of the spec that comes first from in, tells where they
// are, and then does what it is told until in ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	var spec Spec
	if err := dec.Decode(&spec); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	srv, err := etcdserver.Start(ctx, etcdserver.Options{Dir: filepath.Join(spec.Dir, "source")})
	if err != nil {
		return err
	}
	defer srv.Close()
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	defer func() { cancel(); _ = g.Wait() }()
	s := &source{spec: spec, store: srv.Client()}
	var peers []Peer
	for i := range spec.Peers {
		p, serve, err := s.front(i, srv.Backend())
		if err != nil {
			return err
		}
		peers = append(peers, p)
		g.Go(func() error { return serve(ctx) })
		if err := s.fill(ctx, i, p); err != nil {
			return err
		}
	}
	g.Go(func() error { return s.live(ctx) })
	if err := enc.Encode(peers); err != nil {
		return err
	}
	return s.obey(ctx, dec, enc)
}

// front makes the mesh API of a peer.
func (s *source) front(peer int, backend etcdserver.Backend) (p Peer, serve func(context.Context) error, err error) {
	p.Name = Name(peer)
	reader, err := pki.ParseBundle([]byte(s.spec.CA))
	if err != nil {
		return p, nil, err
	}
	ca, err := pki.NewCA(p.Name, time.Now())
	if err != nil {
		return p, nil, err
	}
	cert, err := pki.IssueServer(ca, p.Name, time.Now())
	if err != nil {
		return p, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return p, nil, fmt.Errorf("listen for %s: %w", p.Name, err)
	}
	p.Endpoint, p.CA = l.Addr().String(), string(ca.CertPEM())
	trust := &pki.Trust{Server: cert, Peers: map[string][]*x509.Certificate{s.spec.Cluster: reader}}
	f := etcdserver.NewFront(p.Name, backend, etcdserver.FrontOptions{Trust: func() *pki.Trust { return trust }})
	return p, func(ctx context.Context) error { return f.Serve(ctx, l) }, nil
}

// fill writes a peer's rows.
func (s *source) fill(ctx context.Context, peer int, p Peer) error {
	header := wire.Cluster{Name: p.Name, Product: "bench", MinVersion: wire.Version, MaxVersion: wire.Version, Incarnation: "1",
		PodCIDRs: PodCIDRs(peer), Endpoints: []string{p.Endpoint}, CABundle: []byte(p.CA)}
	return s.apply(ctx, peer, rows(peer, s.spec.Shape, header))
}

func (s *source) apply(ctx context.Context, peer int, rows map[string]string) error {
	var all []error
	for _, err := range kvstore.NewTarget(s.store, wire.ExportPrefix(Name(peer))).Apply(ctx, rows, nil) {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// live beats the hearts of all peers every five seconds, as real ones do, one
// after the other.
func (s *source) live(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second / time.Duration(s.spec.Peers))
	defer tick.Stop()
	for {
		key := wire.ExportPrefix(Name(int(s.beats)%s.spec.Peers)) + wire.HeartbeatTail().String()
		beat := wire.Heartbeat{Count: s.beats + 1, At: time.Now()}
		if _, err := s.store.Put(ctx, key, string(beat.Encode())); err != nil {
			return err
		}
		s.beats++
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

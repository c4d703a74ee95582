package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/version"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// serveHealth answers kubelet's probes and Prometheus, until ctx ends.
func (s *server) serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answer(w, s.unhealthy(r.Context())) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { answer(w, s.notReady(r.Context())) })
	l, err := listen(ctx, s.log, s.opt.Listen)
	if err != nil {
		return fmt.Errorf("listen for health: %w", err)
	}
	return serveHTTP(ctx, l, mux)
}

// serveSocket answers the status verb on a root-only socket, until ctx ends.
func (s *server) serveSocket(ctx context.Context) error {
	l, err := podnet.Listen(s.opt.Socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, s.report(r.Context()))
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // Go's profiles, for root of the node only
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("POST /v1/probe", func(w http.ResponseWriter, r *http.Request) {
		var req ProbeRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		result, err := s.probe(r.Context(), req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, result)
	})
	return serveHTTP(ctx, l, mux)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the reader has gone
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	return ctx.Err()
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// unhealthy says why a restart might help; one does not mend an etcd elsewhere.
func (s *server) unhealthy(ctx context.Context) error {
	if s.store.external {
		return nil
	}
	return s.storeAnswers(ctx)
}

// storeAnswers asks the store for one row.
func (s *server) storeAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := s.store.client.Get(ctx, wire.ExportPrefix(s.cfg.Cluster.Name)+wire.ClusterTail().String(), clientv3.WithKeysOnly()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// notReady says why readers should use another replica; nil if they need not.
func (s *server) notReady(ctx context.Context) error {
	if s.trust.current() == nil {
		return errors.New("no certificate yet")
	}
	select {
	case <-s.export.Ready():
	default:
		if !s.store.external || s.leader.Leading() {
			return errors.New("not all of this cluster's rows are published yet")
		}
	}
	return s.storeAnswers(ctx)
}

// report is the server's status.
func (s *server) report(ctx context.Context) status.APIServer {
	r := status.APIServer{
		Cluster: s.cfg.Cluster.Name, Replica: s.opt.Pod, Version: version.Version, Started: s.started, Leader: s.leader.Leading(),
		Endpoints: s.tables.endpoints(), CABundle: string(s.keys.bundle()), MinWire: wire.Version, MaxWire: wire.Version,
		Lines: s.board.Lines(), Peers: []status.Peer{},
	}
	if resp, err := s.store.client.Get(ctx, "/clustermesh/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil {
		r.Rows = resp.Count
	}
	for _, p := range s.peers.States(ctx) {
		r.Peers = append(r.Peers, p.Peer)
	}
	return r
}

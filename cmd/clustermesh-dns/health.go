package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// serveHealth answers kubelet's probes and Prometheus until ctx ends, at the
// addresses and paths that CoreDNS uses.
func (r *resolver) serveHealth(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range []struct {
		addr, path string
		handler    http.Handler
	}{
		{r.opt.metrics, "/metrics", promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{})},
		{r.opt.health, "/health", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") })},
		{r.opt.ready, "/ready", http.HandlerFunc(r.answerReady)},
	} {
		mux := http.NewServeMux()
		mux.Handle("GET "+s.path, s.handler)
		g.Go(func() error { return serveHTTP(ctx, s.addr, mux) })
	}
	return g.Wait()
}

// answerReady says what is missing before questions can be answered. Once they
// can, they can for good: an API server that is away costs no name.
func (r *resolver) answerReady(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-r.index.Synced():
		fmt.Fprint(w, "OK")
	default:
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, strings.Join(r.index.Lagging(), ","))
	}
}

func serveHTTP(ctx context.Context, addr string, h http.Handler) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", addr, err)
	}
	return ctx.Err()
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// healthServers answer load balancers on the healthCheckNodePorts of Services
// whose externalTrafficPolicy is Local: 200 where a backend is on this node,
// else 503 (KEP-27, the format is kube-proxy's).
type healthServers struct {
	board *status.Board
	wake  chan struct{}

	mu     sync.Mutex
	wanted map[uint16]service.Health // guarded by mu
}

func newHealthServers(board *status.Board) *healthServers {
	return &healthServers{board: board, wake: make(chan struct{}, 1)}
}

// set says which ports there should be, and what to answer there.
func (h *healthServers) set(wanted map[uint16]service.Health) {
	h.mu.Lock()
	h.wanted = wanted
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *healthServers) get() map[uint16]service.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wanted
}

// run keeps a server on every port until ctx ends. A port that is taken is tried
// again now and then.
func (h *healthServers) run(ctx context.Context) error {
	running := map[uint16]*http.Server{}
	var servers sync.WaitGroup
	defer servers.Wait()
	defer func() {
		for _, s := range running {
			s.Close()
		}
	}()
	retry := time.NewTicker(10 * time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.wake:
		case <-retry.C:
		}
		wanted := h.get()
		for port, s := range running {
			if _, still := wanted[port]; !still {
				s.Close()
				delete(running, port)
			}
		}
		for port := range wanted {
			if running[port] == nil {
				if s := h.start(ctx, port, &servers); s != nil {
					running[port] = s
				}
			}
		}
	}
}

func (h *healthServers) start(ctx context.Context, port uint16, servers *sync.WaitGroup) *http.Server {
	key := status.Key{Component: "healthcheck", Object: strconv.Itoa(int(port))}
	l, err := listenOnce(ctx, fmt.Sprintf(":%d", port))
	if err != nil {
		h.board.Set(key, status.Degraded, err.Error(), "find out who has the port; load balancers take this node for one without backend")
		return nil
	}
	h.board.Clear(key)
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.answer(w, port)
	})}
	servers.Go(func() { _ = s.Serve(l) }) // until it is closed
	return s
}

func (h *healthServers) answer(w http.ResponseWriter, port uint16) {
	health := h.get()[port]
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(health.Local))
	if health.Local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{ // the reader has gone
		"service":             map[string]string{"namespace": health.Namespace, "name": health.Name},
		"localEndpoints":      health.Local,
		"serviceProxyHealthy": true,
	})
}

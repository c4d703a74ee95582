package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// serveSocket answers the CNI plugin and the status verb on the root-only
// socket, until ctx ends.
func (a *agent) serveSocket(ctx context.Context) error {
	l, err := podnet.Listen(a.opt.socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	a.pod.Register(mux)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.report()) })
	mux.HandleFunc("GET /v1/services", a.services.explain)
	return podnet.Serve(ctx, l, mux, a.log)
}

// serveHealth answers kubelet's probes and Prometheus, until ctx ends.
func (a *agent) serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.notReady(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	s := &http.Server{Addr: a.opt.listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	l, err := listen(ctx, a.opt.listen)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health on %s: %w", a.opt.listen, err)
	}
	return ctx.Err()
}

// listen waits for the address while the agent before us still holds it: in an
// upgrade both share the node's network.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	for {
		l, err := listenOnce(ctx, addr)
		if !errors.Is(err, unix.EADDRINUSE) || ctx.Err() != nil {
			return l, err
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func listenOnce(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", addr)
}

// report is the agent's status.
func (a *agent) report() status.Agent {
	r := status.Agent{
		Cluster: a.cfg.Cluster.Name, Node: a.opt.node, Version: version.Version, Started: a.started,
		Ready: a.notReady() == nil, Backend: string(a.cfg.Routing.Backend), Pods: a.pods.Len(), Lines: a.board.Lines(),
	}
	if p, complete := a.world.current(); p != nil {
		r.MTU, r.Nodes, r.MeshSync = p.PodMTU, p.Remotes, complete
	}
	return r
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the reader has gone
}

// printStatus asks the agent of this node over its socket.
func printStatus(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("status", flag.ContinueOnError)
	fs.SetOutput(out)
	format := fs.String("o", "text", "output `format`: text or json")
	socket := fs.String("socket", podnet.DefaultSocket, "the agent's unix socket")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("-o %q is not known: use text or json", *format)
	}
	body, err := get(ctx, *socket, "/v1/status")
	if err != nil {
		return err
	}
	if *format == "json" {
		_, err = out.Write(body)
		return err
	}
	var r status.Agent
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	fmt.Fprintf(out, "node %s of cluster %s, version %s, ready %v\nbackend %s, pod MTU %d, %d pods, routes to %d nodes\n",
		r.Node, r.Cluster, r.Version, r.Ready, r.Backend, r.MTU, r.Pods, len(r.Nodes))
	for _, l := range r.Lines {
		fmt.Fprintf(out, "%-9s %-12s %s %s\n", l.Level, l.Component, l.Object, l.Message)
	}
	return nil
}

func get(ctx context.Context, socket, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask agent at %s: %w", socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("agent at %s answers %s to GET %s: is it of another version?", socket, resp.Status, path)
	}
	return body, err
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"
)

// seen is what a server tells a client.
type seen struct {
	Pod  string `json:"pod"`
	Node string `json:"node"`
	// Source is the client's address as it arrived, with the port.
	Source string `json:"source"`
	// TTL is the time to live or hop limit that arrived (UDP only), and Hops how
	// many routers took one off it, from the usual 64.
	TTL  int `json:"ttl,omitempty"`
	Hops int `json:"hops"`
}

// whoAmI takes the names from the downward API if the pod has them.
func whoAmI() seen {
	host, _ := os.Hostname()
	return seen{Pod: cmp.Or(os.Getenv("POD_NAME"), host), Node: os.Getenv("NODE_NAME")}
}

// serve answers on every port until ctx ends. UDP has a socket per family: a
// shared one reports IPv4 in IPv6's clothes.
func serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(ctx) })
	group.Go(func() error { return serveFlow(ctx) })
	for _, network := range []string{"udp4", "udp6"} {
		group.Go(func() error { return serveUDP(ctx, network) })
	}
	return group.Wait()
}

func serveHTTP(ctx context.Context) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := whoAmI()
		answer.Source = r.RemoteAddr
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
	server := &http.Server{Addr: ":" + httpPort, Handler: handler}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveFlow sends back whatever arrives.
func serveFlow(ctx context.Context) error {
	l, err := net.Listen("tcp", ":"+flowPort)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

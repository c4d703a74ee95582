package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/serve"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// printStatus asks the running server over its socket.
func printStatus(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("status", flag.ContinueOnError)
	fs.SetOutput(out)
	format := fs.String("o", "text", "output `format`: text or json")
	socket := fs.String("socket", serve.DefaultSocket, "the server's unix socket")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *format != "text" && *format != "json" {
		return fmt.Errorf("-o %q is not known: use text or json", *format)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := ask(ctx, *socket, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return err
	}
	if *format == "json" {
		_, err := out.Write(body)
		return err
	}
	var r status.APIServer
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	describe(out, r)
	return nil
}

func describe(out io.Writer, r status.APIServer) {
	fmt.Fprintf(out, "cluster %s, replica %s, version %s, leader %v, %d rows, announced at %v\n",
		r.Cluster, r.Replica, r.Version, r.Leader, r.Rows, r.Endpoints)
	for _, p := range r.Peers {
		fmt.Fprintf(out, "peer %s: connected %v, synced %v, endpoint %s, heartbeat %.0fs ago, rows %v %s\n",
			p.Name, p.Connected, p.Synced, p.Endpoint, p.HeartbeatSeconds, p.Counts, p.Error)
		for _, f := range p.Refused {
			fmt.Fprintf(out, "  refused %d: %s, as %q: %s\n", f.Count, f.Reason, f.Example, f.Message)
		}
	}
	for _, l := range r.Lines {
		fmt.Fprintf(out, "%-9s %-12s %s %s\n", l.Level, l.Component, l.Object, l.Message)
	}
}

// ask sends a request to the running server.
func ask(ctx context.Context, socket, method, path string, body io.Reader) ([]byte, error) {
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://apiserver"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the server at %s: %w", socket, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("ask the server at %s: %s: %s", socket, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

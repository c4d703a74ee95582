package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/serve"
	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// probe has the running server try one endpoint of a peer's mesh API, step by
// step, and prints how far it got. It fails only if nothing could be tried.
func probe(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var req serve.ProbeRequest
	fs := flag.NewFlagSet("probe", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.StringVar(&req.Endpoint, "endpoint", "", "`host:port` of the peer's mesh API")
	fs.StringVar(&req.Cluster, "cluster", "", "`name` of the peer")
	caFile := fs.String("ca-file", "", "PEM `file` with the peer's CA certificates; - is standard input")
	timeout := fs.Duration("timeout", 5*time.Second, "for all steps together")
	socket := fs.String("socket", serve.DefaultSocket, "the server's unix socket")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := config.HostPort(req.Endpoint); err != nil {
		return fmt.Errorf("--endpoint: %w; for example 192.0.2.7:7473", err)
	}
	if !wire.ValidClusterName(req.Cluster) {
		return fmt.Errorf("--cluster: %q is not a cluster's name, an RFC 1123 label", req.Cluster)
	}
	ca, err := readAll(*caFile, in)
	if err != nil {
		return fmt.Errorf("--ca-file: %w", err)
	}
	req.CABundle, req.TimeoutMillis = string(ca), timeout.Milliseconds()
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("marshal request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout+5*time.Second)
	defer cancel()
	answer, err := ask(ctx, *socket, "POST", "/v1/probe", bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, err = out.Write(answer)
	return err
}

func readAll(path string, in io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(in, 1<<20))
	}
	return os.ReadFile(path)
}

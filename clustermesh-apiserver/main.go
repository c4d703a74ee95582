// Command clustermesh-apiserver is the mesh API server of its cluster: it
// publishes what the cluster has to tell, reads and admits what the peers tell,
// and serves both from its own etcd.
//
//	clustermesh-apiserver [serve] --config FILE    serve (the Deployment does this)
//	clustermesh-apiserver status [-o json]         ask the running server
//	clustermesh-apiserver probe --endpoint HOST:PORT --cluster NAME --ca-file FILE
//	clustermesh-apiserver version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/serve"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// gcPercent trades a little CPU for memory: most of the heap is etcd's index,
// which lives as long as we do.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "clustermesh-apiserver:", err)
		os.Exit(1)
	}
}

// run picks the verb; without one the server serves.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	verb := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "serve":
		opt, err := serve.ParseOptions(args, errOut)
		if err != nil {
			return err
		}
		return serve.Run(ctx, opt, errOut)
	case "status":
		return printStatus(ctx, args, out)
	case "probe":
		return probe(ctx, args, in, out)
	case "version":
		_, err := fmt.Fprintln(out, version.Version)
		return err
	}
	return fmt.Errorf("verb %q is not known: use serve, status, probe or version", verb)
}

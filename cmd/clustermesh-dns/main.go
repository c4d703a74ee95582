// Command clustermesh-dns answers for clusterset.local in its cluster: the names
// of Services that any cluster of the set exports, from the ServiceImports and
// EndpointSlices of this cluster.
//
//	clustermesh-dns [serve] --config FILE    serve (the Deployment does this)
//	clustermesh-dns version
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

	"github.com/clustermesh/clustermesh/pkg/version"
)

// gcPercent trades a little CPU for memory: the index lives as long as we do,
// and queries allocate nothing.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "clustermesh-dns:", err)
		os.Exit(1)
	}
}

// run picks the verb; without one the resolver serves.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	verb := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "serve":
		opt, err := parseOptions(args, errOut)
		if err != nil {
			return err
		}
		r, err := newResolver(ctx, opt, errOut)
		if err != nil {
			return err
		}
		return r.run(ctx)
	case "version":
		_, err := fmt.Fprintln(out, version.Version)
		return err
	}
	return fmt.Errorf("verb %q is not known: use serve or version", verb)
}

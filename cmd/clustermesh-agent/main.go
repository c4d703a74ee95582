// Command clustermesh-agent is the CNI of its node: addresses, devices, routes
// and filters of its pods, and the routes to every other node of the mesh.
//
//	clustermesh-agent [run] --config FILE      serve (the DaemonSet does this)
//	clustermesh-agent status [-o json]         ask the running agent
//	clustermesh-agent services                 ask it where Services lead, and why
//	clustermesh-agent cleanup [--wait]         remove everything of ours from the node
//	clustermesh-agent version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/clustermesh/clustermesh/pkg/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "clustermesh-agent:", err)
		os.Exit(1)
	}
}

// run picks the verb; without one the agent serves.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	verb := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "run":
		return serve(ctx, args, errOut)
	case "status":
		return printStatus(ctx, args, out)
	case "services":
		return printServices(ctx, args, out)
	case "cleanup":
		return cleanup(ctx, args, errOut)
	case "version":
		_, err := fmt.Fprintln(out, version.Version)
		return err
	}
	return fmt.Errorf("verb %q is not known: use run, status, services, cleanup or version", verb)
}

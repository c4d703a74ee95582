// Command bench measures the product against its targets: the data path on real
// nodes, the mirror and the agent at the size they are designed for, the CNI
// plugin. It is a benchmark, not a test: it fails only if it can't measure.
//
//	go run ./test/bench [-only PREFIX] [-out bin/bench.json]
//
// PREFIX picks parts by the names of their figures: datapath/direct,
// datapath/vxlan, datapath/bridge, mirror, agent, cni, services.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/clustermesh/clustermesh/test/bench/peers"
	"github.com/clustermesh/clustermesh/test/fixture"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the benchmark, or one of its helper processes.
func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == verbPeers:
		return peers.Serve(ctx, os.Stdin, os.Stdout)
	case len(args) == 3 && args[0] == verbOnNode:
		return onNode(ctx, args[1], args[2])
	}
	b, out, err := parse(args)
	if err != nil {
		return err
	}
	if b.root, err = fixture.Root(); err != nil {
		return err
	}
	if b.bin == "" {
		b.bin = filepath.Join(b.root, "bin", runtime.GOARCH)
	}
	return b.all(ctx, out)
}

// bench is one run.
type bench struct {
	only   string
	root   string // of the source tree
	rounds int
	each   time.Duration // of a data path measurement
	cpu    int
	peers  int // of the mirror
	nodes  int // of the agent's peer
	count  int // of Services
	keep   bool
	bin    string // directory of the API server that the mirror is measured with
}

func parse(args []string) (b *bench, out string, err error) {
	b = &bench{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&b.only, "only", "", "measure only what begins with `PREFIX`")
	f.StringVar(&out, "out", "", "write the figures to `FILE` as JSON")
	f.IntVar(&b.rounds, "rounds", 5, "of data path measurements, interleaved")
	f.DurationVar(&b.each, "each", time.Second, "duration of one data path measurement")
	f.IntVar(&b.cpu, "cpu", runtime.NumCPU()-1, "CPU that both ends of data path measurements run on")
	f.IntVar(&b.peers, "peers", 250, "of the mirror")
	f.IntVar(&b.nodes, "nodes", 5000, "of the agent's peer")
	f.IntVar(&b.count, "services", 10000, "how many, with 10 endpoints each")
	f.BoolVar(&b.keep, "keep", false, "leave the labs running, to look around")
	f.StringVar(&b.bin, "bin", "", "`DIRECTORY` of the clustermesh-apiserver for the mirror (default bin/<arch>)")
	if err := f.Parse(args); err != nil {
		return nil, "", err
	}
	if b.peers < 100 || b.peers > 250 || b.nodes < 500 || b.nodes > 5000 || b.rounds < 1 {
		// With fewer a burst would change the same row twice, and a node move back.
		return nil, "", errors.New("use -peers 100 to 250, -nodes 500 to 5000, -rounds 1 or more")
	}
	return b, out, nil
}

// wants tells whether some figure whose name begins with prefix is asked for.
func (b *bench) wants(prefix string) bool {
	return strings.HasPrefix(prefix, b.only) || strings.HasPrefix(b.only, prefix)
}

// all measures every part that is asked for. A part that can't be measured does
// not hold up the others.
func (b *bench) all(ctx context.Context, out string) error {
	parts := []struct {
		prefixes []string
		measure  func(context.Context) ([]Result, error)
	}{
		{[]string{"datapath/"}, b.datapath},
		{[]string{"mirror/"}, b.mirror},
		{[]string{"agent/", "cni/"}, b.agent},
		{[]string{"services/"}, b.services},
	}
	var results []Result
	var failed []error
	for _, p := range parts {
		wanted := false
		for _, prefix := range p.prefixes {
			wanted = wanted || b.wants(prefix)
		}
		if !wanted || ctx.Err() != nil {
			continue
		}
		rs, err := p.measure(ctx)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.prefixes[0], err))
		}
		for _, r := range rs {
			if strings.HasPrefix(r.Name, b.only) {
				results = append(results, r)
			}
		}
	}
	printTable(os.Stdout, results)
	if out != "" {
		failed = append(failed, writeJSON(out, results))
	}
	return errors.Join(failed...)
}

// progress tells on standard error what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/podnet"
)

// cleanup removes all that is ours from the node, whether or not an agent of
// any version ran before: every kind of object is recognised by its own mark.
// The CNI configuration goes first, so that no pod is wired meanwhile.
func cleanup(parent context.Context, args []string, errOut io.Writer) error {
	fs := flag.NewFlagSet("cleanup", flag.ContinueOnError)
	fs.SetOutput(errOut)
	wait := fs.Bool("wait", false, "stay afterwards and answer /readyz with the outcome, for clustermesh uninstall")
	listenAddr := fs.String("listen", ":9473", "`address` of health with --wait")
	stateDir := fs.String("state-dir", "/var/lib/clustermesh", "`directory` of the journal")
	runDir := fs.String("run-dir", filepath.Dir(podnet.DefaultSocket), "`directory` of the socket")
	serverDir := fs.String("apiserver-dir", "/var/lib/clustermesh-apiserver", "`directory` of the API server's data")
	cniBin := fs.String("cni-bin-dir", "/opt/cni/bin", "`directory` of CNI plugins")
	cniConf := fs.String("cni-conf-dir", "/etc/cni/net.d", "`directory` of CNI configurations")
	pins := fs.String("bpf-pins", defaultPins, "`directory` in a BPF file system")
	for _, name := range []string{"config", "cgroup-root"} {
		fs.String(name, "", "ignored: taken so that the DaemonSet's arguments fit")
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(errOut, nil))
	install := podnet.Install{BinDir: *cniBin, ConfDir: *cniConf, Log: log}
	clean := func() error {
		var space nl.Space
		ctx, cancel := context.WithTimeout(parent, cleanupTime)
		defer cancel()
		err := errors.Join(
			install.Remove(),
			podnet.Cleanup(ctx, filepath.Join(*stateDir, "pods"), log),
			install.Remove(), // again: until it let go of the journal, an agent may have put it back
			route.Cleanup(ctx, space),
			link.Cleanup(ctx, space),
			nft.Cleanup(ctx, space),
			socketlb.Remove(*pins),
			empty(*stateDir), empty(*runDir), empty(*serverDir),
		)
		if err == nil {
			log.Info("node is clean")
		}
		return err
	}
	if !*wait {
		return clean()
	}
	return answer(parent, *listenAddr, func() error {
		err := clean()
		if err != nil {
			log.Error("node is not clean yet, trying again", "error", err)
		}
		return err
	})
}

// cleanupTime bounds the wait for an agent that is still stopping.
const cleanupTime = 2 * time.Minute

// empty removes what is in a directory, and the directory if it is not a mount.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	_ = os.Remove(dir) // fails on the mount point of a hostPath, which uninstall leaves empty
	return errors.Join(errs...)
}

// answer cleans until that works, and says on /readyz how it went, until ctx ends.
func answer(ctx context.Context, addr string, clean func() error) error {
	l, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	outcome := make(chan error, 1) // holds the newest
	outcome <- errors.New("cleaning")
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := <-outcome
		outcome <- err
		if err != nil && r.URL.Path != "/healthz" {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "clean")
	})}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for ctx.Err() == nil {
			err := clean()
			<-outcome
			outcome <- err
			if err == nil {
				break
			}
			pause(ctx, 2*time.Second)
		}
		<-ctx.Done()
		s.Close()
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-outcome
}

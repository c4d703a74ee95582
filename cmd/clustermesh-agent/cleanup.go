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
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
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
	fs.String("config", "", "ignored: taken so that the DaemonSet's arguments fit")
	if err := fs.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(errOut, nil))
	install := podnet.Install{BinDir: *cniBin, ConfDir: *cniConf, Log: log}
	var space nl.Space
	ctx, cancel := context.WithTimeout(parent, cleanupTime)
	defer cancel()
	err := errors.Join(
		install.Remove(),
		podnet.Cleanup(ctx, filepath.Join(*stateDir, "pods"), log),
		route.Cleanup(ctx, space),
		link.Cleanup(ctx, space),
		nft.Cleanup(ctx, space),
		nft.CleanupServices(ctx, space),
		empty(*stateDir), empty(*runDir), empty(*serverDir),
	)
	if err == nil {
		log.Info("node is clean")
	}
	if !*wait {
		return err
	}
	return answer(parent, *listenAddr, err)
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

// answer says on /readyz and /healthz how the clean-up went, until ctx ends.
func answer(ctx context.Context, addr string, outcome error) error {
	l, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if outcome != nil && r.URL.Path != "/healthz" {
			http.Error(w, outcome.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "clean")
	})}
	go func() {
		<-ctx.Done()
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return outcome
}

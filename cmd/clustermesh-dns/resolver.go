package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/clustermesh/clustermesh/pkg/dns"
	"github.com/clustermesh/clustermesh/pkg/dns/zone"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// resolver is the daemon: tables, the zone that is made of them, and who serves it.
type resolver struct {
	opt      options
	log      *slog.Logger
	registry *prometheus.Registry
	client   *kube.Client
	tables   dns.Tables
	index    *dns.Index
	server   *dns.Server
}

// newResolver opens the DNS sockets: questions that come before everything is
// known are told to ask somebody else.
func newResolver(ctx context.Context, opt options, errOut io.Writer) (*resolver, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(opt.config.Log.Level)); err != nil {
		return nil, err // config.Load has checked it
	}
	r := &resolver{opt: opt, log: slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level})), registry: prometheus.NewRegistry()}
	r.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	z, err := zone.New(zone.Config{Name: opt.zone, TTLSeconds: clip[uint32](opt.ttl, math.MaxUint32), UDPSize: clip[uint16](opt.udpSize, math.MaxUint16)})
	if err != nil {
		return nil, err
	}
	rest, err := r.restConfig()
	if err != nil {
		return nil, err
	}
	if r.client, err = kube.New(rest, "clustermesh-dns", opt.namespace); err != nil {
		return nil, err
	}
	r.tables = dns.Tables{Imports: state.New[model.ServiceKey, model.ServiceImport](), Slices: state.New[model.ServiceKey, model.ImportSlice](),
		Namespaces: state.New[string, model.Namespace](), Server: state.New[string, model.Addrs]()}
	r.tables.Imports.Expect(kube.Source)
	r.tables.Slices.Expect(kube.Source)
	r.tables.Namespaces.Expect(kube.Source)
	meter := dns.NewMeter(r.registry, opt.listen, z.Name())
	r.index = dns.NewIndex(r.tables, z, meter, opt.own)
	r.server, err = dns.New(ctx, opt.listen, dns.Options{Log: r.log, Zone: z, Meter: meter, UDPSize: uint16(opt.udpSize)})
	return r, err
}

// clip keeps a number that is too large too large.
func clip[T uint16 | uint32](n, most uint) T { return T(min(n, most)) }

func (r *resolver) restConfig() (*rest.Config, error) {
	if r.opt.kubeconfig != "" {
		return kube.Kubeconfig(r.opt.kubeconfig, "")
	}
	return kube.InCluster(r.opt.config.Kubernetes.Host, r.opt.config.Kubernetes.Port)
}

// run serves until ctx ends, and then for as long as clients may take to hear
// that we are going.
func (r *resolver) run(ctx context.Context) error {
	r.log.Info("resolver starts", "zone", r.opt.zone, "address", r.server.Addr())
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		r.log.Info("resolver ends", "after", r.opt.lameduck)
		time.Sleep(r.opt.lameduck)
		stop()
	})()
	g, serving := errgroup.WithContext(serving)
	for _, part := range []func(context.Context) error{
		r.server.Run, r.index.Run, r.serveHealth, r.announce,
		func(ctx context.Context) error { return r.client.RunServiceImports(ctx, r.log, r.tables.Imports) },
		func(ctx context.Context) error { return r.client.RunImportSlices(ctx, r.log, r.tables.Slices) },
		func(ctx context.Context) error { return r.client.RunNamespaces(ctx, r.log, r.tables.Namespaces) },
		func(ctx context.Context) error {
			return r.client.RunClusterIPs(ctx, r.log, r.opt.service, r.tables.Server)
		},
	} {
		g.Go(func() error { return part(serving) })
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", r.opt.zone, err)
	}
	return ctx.Err()
}

// announce says when everything is known, and gives back what reading it took.
func (r *resolver) announce(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.index.Synced():
	}
	r.log.Info("all names are known", "imports", r.tables.Imports.Len(), "slices", r.tables.Slices.Len())
	debug.FreeOSMemory()
	return nil
}

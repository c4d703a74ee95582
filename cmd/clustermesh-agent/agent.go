package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// defaultPins is where what outlives the agent in the kernel is pinned.
const defaultPins = "/sys/fs/bpf/clustermesh-socketlb"

// options are the command line.
type options struct {
	config    string
	node      string
	namespace string
	stateDir  string
	socket    string
	listen    string
	cniBin    string
	cniConf   string
	plugin    string
	cgroup    string
	pins      string
}

func parseOptions(args []string, errOut io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("clustermesh-agent", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.StringVar(&o.config, "config", "/etc/clustermesh/config.yaml", "configuration `file`")
	fs.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`name` of this node's Node object (default $NODE_NAME)")
	fs.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "`namespace` of clustermesh (default $POD_NAMESPACE)")
	fs.StringVar(&o.stateDir, "state-dir", "/var/lib/clustermesh", "`directory` of the journal")
	fs.StringVar(&o.socket, "socket", podnet.DefaultSocket, "unix socket for the CNI plugin and for status")
	fs.StringVar(&o.listen, "listen", ":9473", "`address` of metrics and health")
	fs.StringVar(&o.cniBin, "cni-bin-dir", "/opt/cni/bin", "`directory` of CNI plugins")
	fs.StringVar(&o.cniConf, "cni-conf-dir", "/etc/cni/net.d", "`directory` of CNI configurations")
	fs.StringVar(&o.plugin, "cni-plugin", "/clustermesh-cni", "CNI plugin to install")
	fs.StringVar(&o.cgroup, "cgroup-root", "/sys/fs/cgroup", "version 2 cgroup `directory` of all processes of the node")
	fs.StringVar(&o.pins, "bpf-pins", defaultPins, "`directory` in a BPF file system")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("argument %q: this verb takes flags only", fs.Arg(0))
	}
	if o.node == "" || o.namespace == "" {
		return o, errors.New("--node and --namespace must be given, or $NODE_NAME and $POD_NAMESPACE be set")
	}
	return o, nil
}

// agent is the daemon: tables, what is planned from them, and who acts on it.
type agent struct {
	opt      options
	cfg      config.Config
	log      *slog.Logger
	board    *status.Board
	registry *prometheus.Registry
	started  time.Time

	client   *kube.Client
	events   kube.Recorder
	nodes    *state.Table[model.NodeKey, model.Node] // of all clusters
	pods     *state.Table[model.PodKey, model.Pod]   // of this node
	mesh     *meshPrefixes
	world    *world
	loops    *loops
	services *services
	balance  *balancers
	pod      *podnet.Server

	programmed atomic.Bool // every kernel target had a good pass
}

func newAgent(opt options, errOut io.Writer) (*agent, error) {
	cfg, err := config.Load(opt.config)
	if err != nil {
		return nil, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		return nil, err // Load has checked it
	}
	a := &agent{
		opt: opt, cfg: cfg, started: time.Now(),
		log:      slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level})),
		board:    status.NewBoard(time.Now),
		registry: prometheus.NewRegistry(),
		nodes:    state.New[model.NodeKey, model.Node](),
		pods:     state.New[model.PodKey, model.Pod](),
	}
	a.nodes.Expect(kube.Source)
	rest, err := kube.InCluster(cfg.Kubernetes.Host, cfg.Kubernetes.Port)
	if err != nil {
		return nil, err
	}
	if a.client, err = kube.New(rest, "clustermesh-agent", opt.namespace); err != nil {
		return nil, err
	}
	a.mesh = newMeshPrefixes(a.log, cfg.Cluster, filepath.Join(opt.stateDir, "mesh.json"), a.nodes)
	a.world = newWorld(a)
	targets := reconcile.Options{Log: a.log, Board: a.board, Resync: time.Minute, Meter: reconcile.NewMeter(a.registry)}
	a.balance = newBalancers(a)
	a.loops = newLoops(a.world, a.balance, targets)
	if a.services, err = newServices(a, targets); err != nil {
		return nil, err
	}
	a.balance.start(targets, a.services, a.loops)
	a.registry.MustRegister(collector{a})
	a.pod, err = podnet.New(podnet.Options{
		Log: a.log, Board: a.board, Pods: a.pods, Journal: filepath.Join(opt.stateDir, "pods"),
		Sync: a.sync, Ready: a.notReady, MTU: a.podMTU, Metrics: podnet.NewMetrics(a.registry), Observe: a.observe,
	})
	return a, err
}

// serve runs the agent until ctx ends. What it has programmed stays in the
// kernel when it ends: the next agent finds it there and touches nothing.
func serve(ctx context.Context, args []string, errOut io.Writer) error {
	opt, err := parseOptions(args, errOut)
	if err != nil {
		return err
	}
	a, err := newAgent(opt, errOut)
	if err != nil {
		return err
	}
	defer a.pod.Close()
	a.log.Info("agent starts", "cluster", a.cfg.Cluster.Name, "node", opt.node)
	return a.run(ctx)
}

// run is what the daemon does.
func (a *agent) run(ctx context.Context) error {
	if err := a.pod.Restore(ctx); err != nil {
		return err
	}
	if err := a.mesh.restore(); err != nil {
		return err
	}
	if err := a.world.restore(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	a.events = a.client.NewRecorder(ctx, "clustermesh-agent", a.opt.node)
	g.Go(func() error { return a.serveHealth(ctx) })
	g.Go(func() error { return a.serveSocket(ctx) })
	g.Go(func() error { return a.client.RunNodesAndHosts(ctx, a.log, a.nodeOptions(), a.nodes, a.balance.hosts) })
	g.Go(func() error { return a.client.RunPeers(ctx, a.log, a.mesh.peers) })
	g.Go(func() error { return a.mesh.run(ctx) })
	g.Go(func() error { return a.runImport(ctx) })
	g.Go(func() error { return a.world.watchUnderlay(ctx) })
	g.Go(func() error { return a.world.run(ctx) })
	g.Go(func() error { return a.pod.Run(ctx) })
	g.Go(func() error { return a.services.run(ctx) })
	g.Go(func() error { return a.balance.run(ctx) })
	g.Go(func() error {
		if err := a.world.waitFirst(ctx); err != nil {
			return err
		}
		g.Go(func() error { return a.announce(ctx) })
		return a.loops.run(ctx)
	})
	return g.Wait()
}

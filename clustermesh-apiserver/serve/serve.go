// Package serve puts the mesh API server together: what it reads, what it
// decides by, what it writes, and who may read from it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/balancer"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/clusterset"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/export"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/ipam"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/peerstatus"
	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// server is the daemon: tables, and those who fill them and act on them.
type server struct {
	opt      Options
	cfg      config.Config
	log      *slog.Logger
	board    *status.Board
	registry *prometheus.Registry
	meter    reconcile.Meter
	started  time.Time

	client *kube.Client
	leader *kube.Leader
	tables *tables
	store  *store
	keys   *keyring
	trust  *trust
	front  *etcdserver.Front
	export *export.Export
	peers  *mesh.Set

	balancer *balancer.Metrics
	set      *kube.ClusterSet
	member   *clusterset.Member

	journal *journal // nil with an external etcd
}

// Run serves until ctx ends.
func Run(ctx context.Context, opt Options, logTo io.Writer) error {
	s, err := newServer(ctx, opt, logTo)
	if err != nil {
		return err
	}
	defer s.store.Close()
	mesh, err := listen(ctx, s.log, opt.MeshListen)
	if err != nil {
		return fmt.Errorf("listen for the mesh API: %w", err)
	}
	s.log.Info("clustermesh-apiserver starts", "cluster", s.cfg.Cluster.Name, "pod", opt.Pod, "mesh", opt.MeshListen, "external etcd", s.store.external)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.tables.run(ctx, s.client, s.set, s.log) }) // what Kubernetes says
	g.Go(func() error { return s.keys.run(ctx) })                           // who we are
	g.Go(func() error { return s.trust.run(ctx, s.front.Recheck) })         // whom we believe
	g.Go(func() error { return s.store.run(ctx) })                          // ends if etcd does
	g.Go(func() error { return s.front.Serve(ctx, mesh) })                  // peers and agents read
	g.Go(func() error { return s.leader.Run(ctx, s.lead) })                 // one replica writes to Kubernetes
	g.Go(func() error { return s.serveHealth(ctx) })                        // kubelet, Prometheus
	g.Go(func() error { return s.serveSocket(ctx) })                        // clustermesh-apiserver status
	g.Go(func() error { return s.member.Run(ctx) })                         // what becomes of Services of several clusters
	g.Go(func() error { return s.readMirror(ctx) })                         // what peers have told
	if !s.store.external {
		g.Go(func() error { return s.write(ctx) })                                // every replica fills its own etcd
		g.Go(func() error { return s.journal.keep(ctx, s.keys, s.tables.peers) }) // to start again without Kubernetes
	}
	return g.Wait()
}

// write publishes our rows, and mirrors those of the peers.
func (s *server) write(ctx context.Context) error {
	if err := s.keys.wait(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.export.Run(ctx) })
	g.Go(func() error { return s.peers.Run(ctx) })
	return g.Wait()
}

// lead is what one replica does for all, until ctx ends.
func (s *server) lead(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	recorder := s.client.NewRecorder(ctx, "clustermesh-apiserver", s.opt.Node)
	g.Go(func() error { return peerstatus.NewWriter(s.client, s.peers.States, recorder, s.log).Run(ctx) })
	g.Go(func() error { return s.balance(ctx, recorder) })
	g.Go(func() error {
		return s.member.RunObjects(ctx, s.set, reconcile.Options{Log: s.log, Board: s.board, Meter: s.meter})
	})
	if s.cfg.IPAM.Mode == config.IPAMClusterPool {
		g.Go(func() error { return s.clusterPool(ctx) })
	}
	if s.store.external {
		g.Go(func() error { return s.write(ctx) })
	}
	return g.Wait()
}

func (s *server) clusterPool(ctx context.Context) error {
	masks := ipam.Masks{V4: s.cfg.IPAM.ClusterPool.MaskSizeIPv4, V6: s.cfg.IPAM.ClusterPool.MaskSizeIPv6}
	pool := ipam.NewPool(s.client, s.tables.nodes, s.board, s.cfg.Cluster.PodCIDRs, masks)
	opt := reconcile.Options{Log: s.log, Board: s.board, Meter: s.meter}
	return reconcile.NewLoop("cluster-pool", pool, pool.Wanted, opt, s.tables.nodes.Subscribe()).Run(ctx)
}

// balance gives Services their addresses out of pools.
func (s *server) balance(ctx context.Context, recorder kube.Recorder) error {
	opt := balancer.Options{Client: s.client, Log: s.log, Recorder: recorder, Metrics: s.balancer,
		Pools: s.tables.pools, Services: s.tables.balanced, Nodes: s.tables.nodes, Peers: s.tables.peers}
	for _, p := range s.cfg.Cluster.PodCIDRs {
		opt.Fixed = append(opt.Fixed, lbpool.Taken{Prefix: p, What: "pods of this cluster"})
	}
	for _, p := range s.cfg.Cluster.ServiceCIDRs {
		opt.Fixed = append(opt.Fixed, lbpool.Taken{Prefix: p, What: "cluster IPs of Services"})
	}
	if s.cfg.Services.KubeProxy == config.KubeProxyReplace { // kube-proxy does not ask
		opt.External = s.cfg.Services.ExternalCIDRs
	}
	return balancer.New(opt).Run(ctx, reconcile.Options{Log: s.log, Board: s.board, Meter: s.meter})
}

func newServer(ctx context.Context, opt Options, logTo io.Writer) (*server, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(opt.Config.Log.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	s := &server{opt: opt, cfg: opt.Config, started: time.Now(), board: status.NewBoard(time.Now),
		log: slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: level}))}
	klog.SetSlogLogger(s.log)
	s.registry = newRegistry()
	s.meter = reconcile.NewMeter(s.registry)
	s.balancer = balancer.NewMetrics(s.registry)
	conf, err := s.restConfig()
	if err != nil {
		return nil, err
	}
	if s.client, err = kube.New(conf, "clustermesh-apiserver", opt.Namespace); err != nil {
		return nil, err
	}
	if s.set, err = s.client.NewClusterSet(); err != nil {
		return nil, err
	}
	if s.store, err = openStore(ctx, opt, s.log); err != nil {
		return nil, err
	}
	s.tables = newTables(s.cfg)
	s.leader = s.client.NewLeader("clustermesh-apiserver", opt.Pod, s.log)
	s.keys = newKeyring(s.client, s.cfg.Cluster.Name, s.board, s.log)
	own := mesh.Own{Cluster: s.cfg.Cluster.Name, PodCIDRs: s.cfg.Cluster.PodCIDRs, ServiceCIDRs: s.cfg.Cluster.ServiceCIDRs}
	s.trust = newTrust(own, s.keys, s.tables.peers)
	if !s.store.external {
		s.journal = openJournal(opt.DataDir, s.cfg.Cluster.Name, s.log, s.tables.peers.Subscribe(), s.keys.subscribe())
		s.journal.restore(s.keys, s.tables.peers)
	}
	meters := newMeters(s.registry)
	s.front = etcdserver.NewFront(s.cfg.Cluster.Name, s.store.backend, etcdserver.FrontOptions{Log: s.log, Trust: s.trust.current, Meter: meters})
	s.peers = mesh.NewSet(mesh.Options{Own: own, Store: s.store.client, Cert: s.keys.peer, Log: s.log, Now: time.Now, Meter: meters, Recall: s.recall, Callers: s.front.Callers},
		s.tables.peers, s.tables.nodes)
	s.registry.MustRegister(mesh.NewCollector(s.peers), s.store)
	s.member = s.newMember()
	if s.export, err = s.newExport(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// recall reads what a peer announced out of its object's status. Without an
// answer the object's own endpoints have to do.
func (s *server) recall(ctx context.Context, peer string) []string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	p, err := s.client.Peers.Get(ctx, peer, metav1.GetOptions{})
	if err != nil || p.Status.Announced == nil {
		return nil
	}
	return p.Status.Announced.Endpoints
}

// listen waits for an address that the server before us still holds.
func listen(ctx context.Context, log *slog.Logger, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	for waiting := false; ; waiting = true {
		l, err := lc.Listen(ctx, "tcp", addr)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		if !waiting {
			log.Warn("address in use, waiting for it", "address", addr)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *server) restConfig() (*rest.Config, error) {
	if s.opt.Kubeconfig != "" {
		return kube.Kubeconfig(s.opt.Kubeconfig, "")
	}
	return kube.InCluster(s.cfg.Kubernetes.Host, s.cfg.Kubernetes.Port)
}

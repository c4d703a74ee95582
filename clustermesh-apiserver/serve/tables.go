package serve

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/export"
	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/version"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// tables are what Kubernetes says.
type tables struct {
	cfg      config.Config
	nodes    *state.Table[model.NodeKey, model.Node]
	peers    *state.Table[string, kube.Peer]
	servers  *state.Table[string, kube.APIServer]
	exposure *state.Table[string, kube.Exposure]
	pools    *state.Table[string, lbpool.Pool]
	balanced *state.Table[lbpool.Key, lbpool.Service] // Services of type LoadBalancer

	services   *state.Table[model.ServiceKey, mcs.Service]
	derived    *state.Table[model.ServiceKey, mcs.DerivedAddrs]
	exports    *state.Table[model.ServiceKey, mcs.Export]
	namespaces *state.Table[string, model.Namespace]
	slices     *state.Table[model.SliceKey, string]  // of all clusters
	claims     *state.Table[model.ExportKey, string] // exports of peers

	mu   sync.Mutex
	last []string // guarded by mu: endpoints that were found last
}

func newTables(cfg config.Config) *tables {
	t := &tables{cfg: cfg, nodes: state.New[model.NodeKey, model.Node](), peers: state.New[string, kube.Peer](),
		servers: state.New[string, kube.APIServer](), exposure: state.New[string, kube.Exposure](),
		pools: state.New[string, lbpool.Pool](), balanced: state.New[lbpool.Key, lbpool.Service](),
		services: state.New[model.ServiceKey, mcs.Service](), derived: state.New[model.ServiceKey, mcs.DerivedAddrs](),
		exports: state.New[model.ServiceKey, mcs.Export](), namespaces: state.New[string, model.Namespace](),
		slices: state.New[model.SliceKey, string](), claims: state.New[model.ExportKey, string]()}
	t.nodes.Expect(kube.Source)
	t.peers.Expect(kube.Source)
	t.servers.Expect(kube.Source)
	t.exposure.Expect(kube.Source)
	t.pools.Expect(kube.Source)
	t.balanced.Expect(kube.Source)
	return t
}

// run keeps the tables until ctx ends.
func (t *tables) run(ctx context.Context, client *kube.Client, set *kube.ClusterSet, log *slog.Logger) error {
	node := kube.NodeOptions{Cluster: t.cfg.Cluster.Name, Encap: t.cfg.Routing.Backend, VXLANPort: plan.DefaultVXLANPort, VNI: plan.DefaultVNI}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return client.RunNodes(ctx, log, node, t.nodes) })
	g.Go(func() error { return client.RunPeers(ctx, log, t.peers) })
	g.Go(func() error { return client.RunAPIServers(ctx, log, t.servers) })
	g.Go(func() error { return client.RunExposure(ctx, log, t.exposure) })
	g.Go(func() error { return client.RunPools(ctx, log, t.pools) })
	g.Go(func() error { return client.RunServicesForMesh(ctx, log, t.services, t.derived, t.balanced) })
	g.Go(func() error { return client.RunSlicesForMesh(ctx, log, t.cfg.Cluster.Name, t.slices) })
	g.Go(func() error { return client.RunNamespaces(ctx, log, t.namespaces) })
	g.Go(func() error { return set.RunServiceExports(ctx, log, t.exports) })
	return g.Wait()
}

// endpoints is where peers can reach the mesh API. A moment without any API
// server pod does not lose them.
func (t *tables) endpoints() []string {
	in := plan.ReachInput{Config: t.cfg.APIServer, Nodes: t.nodes.Rows()}
	for _, s := range t.servers.Rows() {
		if s.Node != "" && !slices.Contains(in.Hosts, s.Node) {
			in.Hosts = append(in.Hosts, s.Node)
		}
	}
	if e, ok := t.exposure.Get(kube.ServiceName); ok {
		in.NodePort, in.Port, in.Ingress = e.NodePort, e.Port, strings.Fields(e.Ingress)
	}
	found := plan.Endpoints(in)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(found) > 0 {
		t.last = found
	}
	return t.last
}

// newExport publishes the tables.
func (s *server) newExport(ctx context.Context) (*export.Export, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // then kubelet shows the error
	defer cancel()
	incarnation, err := export.Incarnation(ctx, s.store.client)
	if err != nil {
		return nil, err
	}
	input := func() (plan.ExportInput, bool) {
		nodes, complete := s.tables.nodes.Snapshot()
		return plan.ExportInput{Nodes: nodes, Cluster: wire.Cluster{
			Name: s.cfg.Cluster.Name, Product: version.Version, MinVersion: wire.Version, MaxVersion: wire.Version,
			Incarnation: incarnation, PodCIDRs: s.cfg.Cluster.PodCIDRs, ServiceCIDRs: s.cfg.Cluster.ServiceCIDRs,
			Endpoints: s.tables.endpoints(), CABundle: s.keys.bundle(),
		}}, complete && s.tables.servers.Synced() && s.tables.exposure.Synced()
	}
	return export.New(export.Options{
		Cluster: s.cfg.Cluster.Name, Store: s.store.client, Input: input, Log: s.log, Board: s.board, Meter: s.meter,
		Services: s.member.Wire(),
		Wakes:    []<-chan struct{}{s.tables.nodes.Subscribe(), s.tables.servers.Subscribe(), s.tables.exposure.Subscribe(), s.keys.subscribe()},
	}), nil
}

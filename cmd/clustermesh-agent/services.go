package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/conntrack"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// services is the node's part in the Services of the cluster: it follows
// Services and EndpointSlices, plans, and keeps the kernel as planned. With
// kube-proxy kept, only the host ports of the node's pods are left to do.
type services struct {
	log    *slog.Logger
	board  *status.Board
	client *kube.Client
	cfg    config.Config
	world  *world

	ports  *state.Table[model.ServicePortKey, model.ServicePort]
	slices *state.Table[model.SliceKey, string]
	// balanced are rows of the same Services for those who answer for addresses.
	balanced *state.Table[lbpool.Key, lbpool.Service]

	vips   []netip.Prefix // of Services, if they are ours
	target *nft.Services
	loop   *reconcile.Loop[service.FrontKey, service.Front]
	fast   *sockets
	event  func(reason, message string) // a warning, about this node
	health *healthServers
	change *fanout // wakes the loops

	fronts *state.Table[service.FrontKey, service.Front] // as planned

	mu        sync.Mutex
	known     bool   // guarded by mu: all sources have reported, and fronts is what they say
	datagrams uint64 // guarded by mu: changes of UDP fronts
}

// servicesEvery is how often the elements are read back. The kernel tells when
// somebody else changes the table, and goes through a set from its beginning for
// every 32 KiB that it lists: 500,000 slots take 40 s, in which nothing is changed.
const servicesEvery = 10 * time.Minute

func newServices(a *agent, opt reconcile.Options) (*services, error) {
	vips := a.cfg.Cluster.ServiceCIDRs
	if a.cfg.Services.KubeProxy == config.KubeProxyKeep {
		vips = nil // what leads nowhere there is for kube-proxy to say
	}
	s := &services{log: a.log, board: a.board, client: a.client, cfg: a.cfg, world: a.world,
		ports: state.New[model.ServicePortKey, model.ServicePort](), slices: state.New[model.SliceKey, string](), balanced: a.balance.services,
		fronts: state.New[service.FrontKey, service.Front](), vips: vips, target: nft.NewServices(nl.Space{}, vips), health: newHealthServers(a.board), change: &fanout{},
		event: func(reason, message string) { a.events.OnNode(a.opt.node, true, reason, message) }}
	if s.ours() {
		s.ports.Expect(kube.Source)
		s.slices.Expect(kube.Source)
	}
	fastOpt := opt
	opt.Resync = servicesEvery
	s.loop = reconcile.NewTableLoop("services", s.target, s.fronts, s.orphans, opt, s.change.subscribe())
	fast, err := s.newSockets(a.opt, fastOpt)
	s.fast = fast
	return s, err
}

func (s *services) ours() bool { return s.cfg.Services.KubeProxy == config.KubeProxyReplace }

// run follows, plans and programs until ctx ends.
func (s *services) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop.Run(ctx) })
	g.Go(func() error { return s.fast.run(ctx) })
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.cutStale(ctx) })
	if s.ours() {
		g.Go(func() error { return s.client.RunServicesAndBalanced(ctx, s.log, s.ports, s.balanced) })
		g.Go(func() error { return s.client.RunSlices(ctx, s.log, s.cfg.Cluster.Name, s.slices) })
		g.Go(func() error { return s.health.run(ctx) })
	}
	return g.Wait()
}

// follow plans after every change.
func (s *services) follow(ctx context.Context) error {
	ports, slices, pods, base := s.ports.Follow(), s.slices.Follow(), s.world.pods.Follow(), s.world.change.subscribe()
	planner, lines, known := service.NewPlanner(), status.Shown{}, false
	var later <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ports.C:
		case <-slices.C:
		case <-pods.C:
		case <-base:
			if known {
				if later == nil { // it is in no hurry, and looks at every node of the mesh
					later = time.After(time.Second)
				}
				continue
			}
			known = s.rebase(planner)
		case <-later:
			later = nil
			known = s.rebase(planner)
		}
		setPorts, delPorts, portsSynced := ports.Take()
		planner.SetPorts(setPorts, delPorts)
		setSlices, delSlices, slicesSynced := slices.Take()
		planner.SetSlices(setSlices, delSlices)
		setPods, delPods, podsSynced := pods.Take()
		planner.SetPods(setPods, delPods)
		if !known || !podsSynced || !portsSynced || !slicesSynced {
			continue // half the truth would send packets nowhere
		}
		if p := planner.Update(); p != nil {
			s.publish(p, planner.Datagrams())
			lines.Show(s.board, s.log, p.Lines)
			s.health.set(p.Health)
		}
	}
}

// planSource is the name under which fronts are claimed.
const planSource = "plan"

// publish passes changes on to those who follow. With kube-proxy kept there are
// rules only while there is something for them.
func (s *services) publish(p *service.Patch, datagrams uint64) {
	set, del := maps.Clone(p.Set), p.Del
	if s.ours() || p.Total > 0 {
		set[service.FrontKey{}] = service.Front{}
	} else {
		del = append(del, service.FrontKey{})
	}
	s.fronts.Update(planSource, set, del)
	s.fast.update(set, del)
	s.mu.Lock()
	s.known, s.datagrams = true, datagrams
	s.mu.Unlock()
	s.change.wake()
}

// rebase tells the planner what node and configuration have to say, if that is
// known.
func (s *services) rebase(p *service.Planner) bool {
	b, known := s.base()
	if known {
		p.SetBase(b)
	}
	return known
}

// orphans lets nothing go before all is known.
func (s *services) orphans() reconcile.Orphan[service.FrontKey] {
	known, _ := s.state()
	return func(service.FrontKey) bool { return known }
}

// state is whether fronts are known, and how often those of UDP have changed.
func (s *services) state() (known bool, datagrams uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known, s.datagrams
}

// base is what this node and its configuration have to say.
func (s *services) base() (service.Base, bool) {
	nodes, synced := s.world.nodes.Snapshot()
	local, known := nodes[s.world.local]
	underlay := s.world.currentUnderlay()
	if !known || len(underlay.Addrs) == 0 {
		return service.Base{}, false
	}
	b := service.Base{Node: local.Key.Name, Zone: local.Zone, External: s.cfg.Services.ExternalCIDRs}
	if len(s.cfg.Services.NodePortAddresses) == 0 {
		b.NodeAddrs = local.Internal.All()
	}
	for _, a := range underlay.Addrs {
		for _, p := range s.cfg.Services.NodePortAddresses {
			if p.Contains(a.Prefix.Addr()) {
				b.NodeAddrs = append(b.NodeAddrs, a.Prefix.Addr())
			}
		}
	}
	b.NodeAddrs = sorted(b.NodeAddrs, netip.Addr.Compare)
	for _, a := range underlay.Addrs {
		b.HostAddrs = append(b.HostAddrs, a.Prefix.Addr())
	}
	b.HostAddrs = sorted(b.HostAddrs, netip.Addr.Compare)
	b.Ours = append(b.Ours, s.cfg.Cluster.ServiceCIDRs...)
	for _, prefixes := range s.world.mesh.byCluster() {
		b.Ours = append(b.Ours, prefixes...)
	}
	for _, n := range nodes {
		for _, a := range append(n.Internal.All(), n.External.All()...) {
			b.Ours = append(b.Ours, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	b.Ours = sorted(b.Ours, netip.Prefix.Compare)
	return b, synced
}

// cutStale ends UDP flows and sockets that go where a Service does not lead any
// more, after the kernel has learnt of it: nobody else would notice, since a
// client that goes on sending keeps such a flow alive.
func (s *services) cutStale(ctx context.Context) error {
	wake, retry, done := s.change.subscribe(), (<-chan time.Time)(nil), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-retry:
		}
		retry = nil
		if known, changes := s.state(); !known || changes == done {
			continue
		}
		err := errors.Join(s.loop.Sync(ctx), s.fast.sync(ctx))
		_, changes := s.state() // now: flows of what the kernel has learnt meanwhile are good
		if err == nil {
			err = s.cut(s.fronts.Rows())
		}
		if err != nil {
			retry = time.After(5 * time.Second)
			continue
		}
		done = changes
	}
}

func (s *services) cut(fronts map[service.FrontKey]service.Front) error {
	sockets, err := s.fast.cut(fronts)
	flows, cutErr := conntrack.CutStale(nl.Space{}, fronts, s.vips)
	err = errors.Join(err, cutErr)
	key := status.Key{Component: "conntrack"}
	if err != nil {
		s.board.Set(key, status.Degraded, err.Error(), "UDP clients may keep on sending to backends that are gone until their flow times out")
		return err
	}
	s.board.Clear(key)
	if flows > 0 || sockets > 0 {
		s.log.Info("stale flows cut", "flows", flows, "sockets", sockets)
	}
	return nil
}

func sorted[T comparable](list []T, compare func(a, b T) int) []T {
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}

// Package balancer gives Services of type LoadBalancer their addresses out of
// LoadBalancerPools, and tells in the status of the pools how they are. It runs
// in the elected replica. lbpool.Allocate decides; two targets write.
package balancer

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// Options of a Controller.
type Options struct {
	Client   *kube.Client
	Log      *slog.Logger
	Recorder kube.Recorder
	Metrics  *Metrics

	Pools    *state.Table[string, lbpool.Pool]
	Services *state.Table[lbpool.Key, lbpool.Service]
	Nodes    *state.Table[model.NodeKey, model.Node]
	Peers    *state.Table[string, kube.Peer]
	Fixed    []lbpool.Taken // networks of pods and Services, from the configuration
	External []netip.Prefix // services.externalCIDRs, where that counts
}

// Controller is the work of one term of the leader.
type Controller struct {
	opt     Options
	planned chan struct{} // wakes who reads the result
	writes  chan struct{} // the same, for the status of pools

	mu     sync.Mutex
	held   map[lbpool.Key]string // guarded by mu: what Services have from us, as read and as written since
	result *lbpool.Result        // guarded by mu; nil before all is known
}

// relistEvery is how often all Services are read although nothing changed.
const relistEvery = 10 * time.Minute

// New returns a controller.
func New(opt Options) *Controller {
	return &Controller{opt: opt, planned: make(chan struct{}, 1), writes: make(chan struct{}, 1), held: map[lbpool.Key]string{}}
}

// Run gives out and withdraws addresses until ctx ends.
func (c *Controller) Run(ctx context.Context, opt reconcile.Options) error {
	g, ctx := errgroup.WithContext(ctx)
	defer c.opt.Metrics.set(nil)
	services := opt
	services.Resync = relistEvery
	g.Go(func() error {
		return reconcile.NewLoop("load-balancer-addresses", addresses{c}, c.wanted, services,
			c.opt.Pools.Subscribe(), c.opt.Services.Subscribe(), c.opt.Nodes.Subscribe(), c.opt.Peers.Subscribe()).Run(ctx)
	})
	g.Go(func() error {
		return reconcile.NewLoop("load-balancer-pools", pools{c}, c.states, opt, c.writes).Run(ctx)
	})
	g.Go(func() error { return c.tell(ctx) })
	return g.Wait()
}

// wanted is what Services should have. A Service whose row is not there yet
// keeps what it has; it goes from there once it is known to be gone.
func (c *Controller) wanted() (map[lbpool.Key]string, bool) {
	in := lbpool.Input{External: c.opt.External, Reserved: map[lbpool.Key]string{}, Taken: append([]lbpool.Taken{}, c.opt.Fixed...)}
	rows, known := c.opt.Services.Snapshot()
	pools, poolsKnown := c.opt.Pools.Snapshot()
	nodes, nodesKnown := c.opt.Nodes.Snapshot()
	peers, peersKnown := c.opt.Peers.Snapshot()
	if !known || !poolsKnown || !nodesKnown || !peersKnown {
		return nil, false
	}
	in.Pools = pools
	for key, n := range nodes {
		for _, a := range append(n.Internal.All(), n.External.All()...) {
			in.Taken = append(in.Taken, lbpool.Taken{Prefix: netip.PrefixFrom(a, a.BitLen()), What: "node " + key.Name})
		}
	}
	for name, p := range peers {
		for _, prefix := range p.PodCIDRs() {
			in.Taken = append(in.Taken, lbpool.Taken{Prefix: prefix, What: "pods of cluster " + name})
		}
	}
	wanted := map[lbpool.Key]string{}
	c.mu.Lock()
	defer c.mu.Unlock()
	in.Services = make(map[lbpool.Key]lbpool.Service, len(rows))
	for key, row := range rows {
		row.Ours = strings.TrimSuffix(c.held[key], lbpool.TornMark)
		in.Services[key] = row
	}
	for key, held := range c.held {
		if _, there := rows[key]; !there {
			in.Reserved[key], wanted[key] = held, held
		}
	}
	result := lbpool.Allocate(in)
	for key, addrs := range result.Given {
		wanted[key] = lbpool.Join(addrs)
	}
	c.result = &result
	c.opt.Metrics.set(result.Pools)
	wake(c.planned)
	wake(c.writes)
	return wanted, true
}

// tell says in Events what Services could not get and what pools can't give,
// once for each message of a Service and each reason of a pool.
func (c *Controller) tell(ctx context.Context) error {
	told, reasons := map[lbpool.Key]string{}, map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.planned:
		}
		c.mu.Lock()
		result := c.result
		c.mu.Unlock()
		for key, message := range result.Waiting {
			if row, there := c.opt.Services.Get(key); there && told[key] != message {
				c.opt.Recorder.OnService(key, row.UID, true, "NoLoadBalancerAddress", message)
			}
		}
		told = result.Waiting
		reasons = c.tellPools(result.Pools, reasons)
	}
}

// tellPools returns the reasons that were told. That a pool is disabled is what
// its owner wants, and no news to anybody.
func (c *Controller) tellPools(pools map[string]lbpool.PoolState, told map[string]string) map[string]string {
	out := map[string]string{}
	for name, st := range pools {
		out[name] = st.Reason
		if row, there := c.opt.Pools.Get(name); there && st.Reason != "" && st.Reason != lbpool.ReasonDisabled && st.Reason != told[name] {
			c.opt.Recorder.OnPool(name, row.UID, true, st.Reason, st.Message)
		}
	}
	return out
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

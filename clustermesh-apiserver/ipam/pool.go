package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Pool is the nodes' pod networks as a reconcile.Target: the leader's alone.
type Pool struct {
	client *kube.Client
	nodes  *state.Table[model.NodeKey, model.Node]
	board  *status.Board
	pools  []netip.Prefix
	masks  Masks

	mu   sync.Mutex
	held map[string]model.Prefixes // guarded by mu: as read from Kubernetes, and what we wrote since
}

// NewPool returns the pool of a cluster.
func NewPool(client *kube.Client, nodes *state.Table[model.NodeKey, model.Node], board *status.Board, pools []netip.Prefix, masks Masks) *Pool {
	return &Pool{client: client, nodes: nodes, board: board, pools: pools, masks: masks, held: map[string]model.Prefixes{}}
}

// List implements reconcile.Target. It reads the nodes themselves and not the
// table, which may not have what another leader wrote a moment ago.
func (p *Pool) List(ctx context.Context) (map[string]model.Prefixes, error) {
	all := map[string]model.Prefixes{}
	opts := metav1.ListOptions{Limit: 500}
	for {
		page, err := p.client.CoreV1().Nodes().List(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		for i := range page.Items {
			if row := kube.NodeRow(&page.Items[i], kube.NodeOptions{}); row.PodCIDRs != (model.Prefixes{}) {
				all[row.Key.Name] = row.PodCIDRs
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = maps.Clone(all)
	return all, nil
}

// Wanted says what every node should have. It is never complete: nothing is
// taken from a node.
func (p *Pool) Wanted() (map[string]model.Prefixes, bool) {
	rows, synced := p.nodes.Snapshot()
	p.mu.Lock()
	nodes := maps.Clone(p.held)
	p.mu.Unlock()
	for key, n := range rows {
		if _, known := nodes[key.Name]; !known {
			nodes[key.Name] = n.PodCIDRs
		}
	}
	wanted := map[string]model.Prefixes{}
	if !synced {
		return wanted, false
	}
	given, without := Assign(p.pools, p.masks, nodes)
	p.report(without)
	for name, share := range nodes {
		if share != (model.Prefixes{}) {
			wanted[name] = share
		}
	}
	maps.Copy(wanted, given)
	return wanted, false
}

// Watch implements reconcile.Watcher: a node that lacks what we know it to have
// was made anew under its old name, so the nodes must be read again.
func (p *Pool) Watch(ctx context.Context, wake func()) error {
	changed := p.nodes.Subscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		rows := p.nodes.Rows()
		p.mu.Lock()
		lost := false
		for key, n := range rows {
			_, known := p.held[key.Name]
			lost = lost || known && n.PodCIDRs == (model.Prefixes{})
		}
		p.mu.Unlock()
		if lost {
			wake()
		}
	}
}

func (p *Pool) report(without []string) {
	key := status.Key{Component: "cluster-pool"}
	if len(without) == 0 {
		p.board.Clear(key)
		return
	}
	p.board.Set(key, status.Degraded, fmt.Sprintf("no pod network is left for %d nodes: %.200s", len(without), strings.Join(without, ", ")),
		"add a range to cluster.podCIDRs, or remove Node objects that no longer exist")
}

// Apply implements reconcile.Target.
func (p *Pool) Apply(ctx context.Context, set map[string]model.Prefixes, _ []string) map[string]error {
	failed := map[string]error{}
	for name, share := range set {
		var cidrs []string
		for _, x := range share.All() {
			cidrs = append(cidrs, x.String())
		}
		if err := p.client.SetPodCIDRs(ctx, name, cidrs); err != nil {
			failed[name] = err
			continue
		}
		p.mu.Lock()
		p.held[name] = share
		p.mu.Unlock()
	}
	return failed
}

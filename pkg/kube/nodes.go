package kube

import (
	"context"
	"log/slog"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// NodeOptions is what a node's row holds beside what its object says.
type NodeOptions struct {
	Cluster   string
	Encap     model.Encap
	VXLANPort uint16
	VNI       uint32
}

// RunNodes keeps table equal to the cluster's Node objects until ctx ends. What
// a row does not hold, such as conditions and heartbeats, wakes nobody.
func (c *Client) RunNodes(ctx context.Context, log *slog.Logger, opt NodeOptions, table *state.Table[model.NodeKey, model.Node]) error {
	return follow(ctx, log, c.CoreV1().Nodes(), metav1.ListOptions{}, nodeStore(opt, table))
}

// RunNodesAndHosts is RunNodes, and keeps a second table of what says whether a
// node may answer for addresses of load balancers. That changes more often, and
// concerns nobody else.
func (c *Client) RunNodesAndHosts(ctx context.Context, log *slog.Logger, opt NodeOptions, table *state.Table[model.NodeKey, model.Node],
	hosts *state.Table[string, lbpool.Node]) error {
	return follow(ctx, log, c.CoreV1().Nodes(), metav1.ListOptions{}, both[*corev1.Node]{nodeStore(opt, table),
		&rowStore[*corev1.Node, string, lbpool.Node]{name: "hosts", table: hosts,
			rows: func(n *corev1.Node) map[string]lbpool.Node { return one(n.Name, HostRow(n)) }}})
}

func nodeStore(opt NodeOptions, table *state.Table[model.NodeKey, model.Node]) store[*corev1.Node] {
	return &rowStore[*corev1.Node, model.NodeKey, model.Node]{
		name: "nodes", table: table,
		rows: func(n *corev1.Node) map[model.NodeKey]model.Node {
			row := NodeRow(n, opt)
			return one(row.Key, row)
		},
	}
}

// HostRow is what makes a node one that may answer for addresses.
func HostRow(n *corev1.Node) lbpool.Node {
	row := lbpool.Node{Addrs: NodeRow(n, NodeOptions{}).Internal}
	if len(n.Labels) > 0 {
		row.Labels = labels.FormatLabels(n.Labels)
	}
	_, row.Apart = n.Labels[corev1.LabelNodeExcludeBalancers]
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case corev1.NodeReady:
			row.Alive = row.Alive || c.Status != corev1.ConditionUnknown // which the node controller sets
		case corev1.NodeNetworkUnavailable:
			row.Apart = row.Apart || c.Status == corev1.ConditionTrue // our agent has not been there yet
		}
	}
	return row
}

// NodeRow is what the mesh needs to know of a Node object. Entries that are no
// addresses or networks are left out; of several of one family the first counts.
func NodeRow(n *corev1.Node, opt NodeOptions) model.Node {
	row := model.Node{
		Key:   model.NodeKey{Cluster: opt.Cluster, Name: n.Name},
		Encap: opt.Encap, VXLANPort: opt.VXLANPort, VNI: opt.VNI,
		Zone: n.Labels[corev1.LabelTopologyZone],
	}
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || addr.Zone() != "" {
			continue // host names are among them
		}
		switch a.Type {
		case corev1.NodeInternalIP:
			row.Internal = row.Internal.Add(addr)
		case corev1.NodeExternalIP:
			row.External = row.External.Add(addr)
		}
	}
	for _, s := range podCIDRs(n) {
		if p, err := netip.ParsePrefix(s); err == nil {
			row.PodCIDRs = row.PodCIDRs.Add(p)
		}
	}
	return row
}

func podCIDRs(n *corev1.Node) []string {
	if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		return []string{n.Spec.PodCIDR}
	}
	return n.Spec.PodCIDRs
}

package kube

import (
	"context"
	"log/slog"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	return follow(ctx, log, c.CoreV1().Nodes(), metav1.ListOptions{}, &rowStore[*corev1.Node, model.NodeKey, model.Node]{
		name: "nodes", table: table,
		rows: func(n *corev1.Node) map[model.NodeKey]model.Node {
			row := NodeRow(n, opt)
			return one(row.Key, row)
		},
	})
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

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// Peer is the row of a Peer object: everything but its status, so that writing
// the status wakes nobody.
type Peer struct {
	Name       string
	UID        string
	Generation int64
	Created    int64  // seconds since 1970, as Kubernetes keeps it
	SpecJSON   string // v1alpha1.PeerSpec
}

// Spec is what the object asks for.
func (p Peer) Spec() v1alpha1.PeerSpec {
	var s v1alpha1.PeerSpec
	if err := json.Unmarshal([]byte(p.SpecJSON), &s); err != nil {
		panic(fmt.Sprintf("row of Peer %s: %v", p.Name, err)) // PeerRow wrote it
	}
	return s
}

// PodCIDRs are the networks of spec.import.podCIDRs that can be read.
func (p Peer) PodCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range p.Spec().Import.PodCIDRs {
		if x, err := netip.ParsePrefix(s); err == nil {
			out = append(out, x.Masked())
		}
	}
	return out
}

// PeerRow is the row of a Peer object.
func PeerRow(p *v1alpha1.Peer) Peer {
	spec, err := json.Marshal(p.Spec)
	if err != nil {
		panic(fmt.Sprintf("marshal Peer %s: %v", p.Name, err)) // no field of ours can fail
	}
	return Peer{Name: p.Name, UID: string(p.UID), Generation: p.Generation,
		Created: p.CreationTimestamp.Unix(), SpecJSON: string(spec)}
}

// RunPeers keeps table equal to the cluster's Peer objects until ctx ends; one
// that is being deleted counts as gone.
func (c *Client) RunPeers(ctx context.Context, log *slog.Logger, table *state.Table[string, Peer]) error {
	return follow(ctx, log, c.Peers, metav1.ListOptions{}, &rowStore[*v1alpha1.Peer, string, Peer]{
		name: "peers", table: table,
		rows: func(p *v1alpha1.Peer) map[string]Peer {
			if p.DeletionTimestamp != nil {
				return nil
			}
			return one(p.Name, PeerRow(p))
		},
	})
}

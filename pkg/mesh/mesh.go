// Package mesh is the set of peers: which Peer objects can be used, one
// connection to each, what is admitted of their rows, and how each is doing.
// Whatever a peer sends is data from a stranger. The functions that judge it
// (Accept, Admission) do no I/O; Set does it for them.
package mesh

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Own is what must be known of our own cluster to judge others.
type Own struct {
	Cluster                string
	PodCIDRs, ServiceCIDRs []netip.Prefix
}

// Rules are what a Peer object allows, in usable form.
type Rules struct {
	Peer       string
	Endpoints  []string
	CA         []*x509.Certificate
	PodCIDRs   []netip.Prefix
	NodeCIDRs  []netip.Prefix // empty: any that is nobody else's
	Namespaces []string       // empty: all
	Limits     Limits
}

// Verdict is what to make of a Peer object. With Rules and an Err, as for a CA
// bundle that can't be read, what was admitted before stays, but nobody is
// dialled and the peer may not read. Without Rules it counts as absent.
type Verdict struct {
	Rules *Rules
	Err   error
}

// Usable tells whether the peer is to be dialled, and may read from us.
func (v Verdict) Usable() bool { return v.Rules != nil && v.Err == nil }

// Accept judges all Peer objects. Of two whose pod ranges overlap the older one
// is accepted (by creation, then by name), so a new Peer never takes anything
// from one that is in use.
func Accept(own Own, peers []kube.Peer) map[string]Verdict {
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b kube.Peer) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name, b.Name))
	})
	out := make(map[string]Verdict, len(peers))
	taken := own.ranges()
	for _, p := range peers {
		v := judge(own, p, taken)
		out[p.Name] = v
		if v.Rules != nil {
			for _, x := range v.Rules.PodCIDRs {
				taken = append(taken, owned{x, fmt.Sprintf("Peer %s (spec.import.podCIDRs)", p.Name), "disconnect that peer, or narrow the range of one of the two"})
			}
		}
	}
	return out
}

// owned is a range that somebody has, and what to do if another wants it.
type owned struct {
	prefix netip.Prefix
	owner  string
	remedy string
}

func (o Own) ranges() []owned {
	var out []owned
	for _, p := range o.PodCIDRs {
		out = append(out, owned{p, "this cluster's cluster.podCIDRs", "the two clusters can't be joined until one of them gets other pod addresses"})
	}
	for _, p := range o.ServiceCIDRs {
		out = append(out, owned{p, "this cluster's cluster.serviceCIDRs", "a peer's pods must not have addresses of our Services"})
	}
	return out
}

func judge(own Own, p kube.Peer, taken []owned) Verdict {
	spec := p.Spec()
	r := &Rules{Peer: p.Name, Endpoints: spec.Endpoints, Namespaces: spec.Import.Namespaces, Limits: limits(spec.Import.Limits)}
	if err := judgeImport(own, r, spec.Import, taken); err != nil {
		return Verdict{Err: err}
	}
	return Verdict{Rules: r, Err: judgeLink(r, spec)}
}

func judgeImport(own Own, r *Rules, spec v1alpha1.Import, taken []owned) (err error) {
	if !wire.ValidClusterName(r.Peer) {
		return fmt.Errorf("name %q is not an RFC 1123 label; a Peer is named after the remote cluster", r.Peer)
	}
	if r.Peer == own.Cluster {
		return fmt.Errorf("name %q is our own cluster's; a Peer is named after the remote cluster, and names must differ", r.Peer)
	}
	if r.PodCIDRs, err = networks("spec.import.podCIDRs", spec.PodCIDRs); err != nil {
		return err
	}
	if r.NodeCIDRs, err = networks("spec.import.nodeCIDRs", spec.NodeCIDRs); err != nil {
		return err
	}
	for _, x := range r.PodCIDRs {
		for _, t := range taken {
			if x.Overlaps(t.prefix) {
				return fmt.Errorf("spec.import.podCIDRs: %v overlaps %v of %s; %s", x, t.prefix, t.owner, t.remedy)
			}
		}
	}
	return nil
}

func judgeLink(r *Rules, spec v1alpha1.PeerSpec) (err error) {
	if r.CA, err = pki.ParseBundle([]byte(spec.Trust.CABundle)); err != nil {
		return fmt.Errorf("spec.trust.caBundle: %w; put the peer's CA certificates there (`clustermesh connect --refresh --destination-context CONTEXT`)", err)
	}
	if len(spec.Endpoints) == 0 {
		return errors.New("spec.endpoints is empty; give host:port of the peer's mesh API (`clustermesh connect --refresh --destination-context CONTEXT`)")
	}
	for i, e := range spec.Endpoints {
		if err := config.HostPort(e); err != nil {
			return fmt.Errorf("spec.endpoints[%d]: %w; for example 192.0.2.7:7473", i, err)
		}
	}
	return nil
}

func networks(field string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %q is not a network; for example 10.2.0.0/16", field, i, s)
		}
		if p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s[%d]: %q has bits behind its mask; write %v", field, i, s, p.Masked())
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("%s[%d]: %q is everything; name the peer's own range", field, i, s)
		}
		if what := config.Reserved(p); what != "" {
			return nil, fmt.Errorf("%s[%d]: %q overlaps %s; name the peer's own range", field, i, s, what)
		}
		out = append(out, p)
	}
	return out, nil
}

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// claim is a node saying that a pod prefix is its own.
type claim struct {
	prefix netip.Prefix
	node   model.NodeKey
}

// rank orders nodes by whom to believe: this node, its cluster, the others by
// name. It makes the outcome of a conflict the same on every pass.
func (r *resolver) rank(a, b model.NodeKey) int {
	return cmp.Or(cmp.Compare(r.distance(a), r.distance(b)), a.Compare(b))
}

func (r *resolver) distance(k model.NodeKey) int {
	switch {
	case k == r.in.Local:
		return 0
	case k.Cluster == r.in.Local.Cluster:
		return 1
	}
	return 2
}

// accepted returns which pod prefixes each node really has: those inside what
// its cluster may use, and of overlapping ones the best ranked.
func (r *resolver) accepted() map[model.NodeKey]model.Prefixes {
	claims := make([]claim, 0, 2*len(r.in.Nodes))
	for key, n := range r.in.Nodes {
		for _, p := range n.PodCIDRs.All() {
			if r.allowed(key, p) {
				claims = append(claims, claim{p.Masked(), key})
			}
		}
	}
	slices.SortFunc(claims, compareClaims)
	out := make(map[model.NodeKey]model.Prefixes, len(r.in.Nodes))
	r.claims = make([]claim, 0, len(claims))
	for len(claims) > 0 {
		n := overlapping(claims)
		for _, c := range r.settle(claims[:n]) {
			out[c.node] = out[c.node].Add(c.prefix)
			r.claims = append(r.claims, c)
		}
		claims = claims[n:]
	}
	return out
}

// compareClaims orders by prefix, wider ones before those inside them.
func compareClaims(a, b claim) int {
	if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
		return c
	}
	return cmp.Or(cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), a.node.Compare(b.node))
}

// overlapping returns how many of the sorted claims lie under the first one:
// prefixes either nest or are disjoint, so these are all that it conflicts with.
func overlapping(claims []claim) int {
	n := 1
	for n < len(claims) && claims[0].prefix.Contains(claims[n].prefix.Addr()) {
		n++
	}
	return n
}

// settle picks from claims under one prefix, best ranked first, those that
// overlap none picked before, and reports the rest.
func (r *resolver) settle(claims []claim) []claim {
	if len(claims) == 1 {
		return claims
	}
	ranked := slices.Clone(claims)
	slices.SortFunc(ranked, func(a, b claim) int {
		return cmp.Or(r.rank(a.node, b.node), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var won []claim
	for _, c := range ranked {
		i := slices.IndexFunc(won, func(w claim) bool { return w.prefix.Overlaps(c.prefix) })
		if i < 0 {
			won = append(won, c)
			continue
		}
		r.conflict(c.node.String(),
			fmt.Sprintf("pod prefix %v overlaps %v of node %v and is not routed", c.prefix, won[i].prefix, won[i].node),
			"give the nodes distinct pod prefixes")
	}
	return won
}

// allowed tells whether a node of a peer stays inside what its Peer may
// announce. The API server has checked that already; a row that slipped
// through, or outlived a narrower Peer, still gets no route. Our own nodes are
// believed: their prefixes come from our own Kubernetes.
func (r *resolver) allowed(key model.NodeKey, p netip.Prefix) bool {
	if key.Cluster == r.in.Local.Cluster {
		return true
	}
	if r.inMesh(key.Cluster, p) {
		return true
	}
	r.conflict(key.String(),
		fmt.Sprintf("pod prefix %v lies outside of what cluster %s may announce and is not routed", p, key.Cluster),
		fmt.Sprintf("widen the pod prefixes of Peer %s if that is right", key.Cluster))
	return false
}

// distinctPods returns the pods in the order of their keys, without addresses
// that a pod before them has.
func (r *resolver) distinctPods() []model.Pod {
	keys := slices.SortedFunc(maps.Keys(r.in.Pods), comparePods)
	r.podIPs = make(map[netip.Addr]model.PodKey, 2*len(keys))
	out := make([]model.Pod, 0, len(keys))
	for _, k := range keys {
		out = append(out, r.distinctPod(k))
	}
	return out
}

func (r *resolver) distinctPod(k model.PodKey) model.Pod {
	pod := r.in.Pods[k]
	ips := pod.IPs.All()
	pod.IPs = model.Addrs{}
	for _, ip := range ips {
		if other, taken := r.podIPs[ip]; taken {
			o := r.in.Pods[other]
			r.conflict(ip.String(), fmt.Sprintf("pod %s/%s has the address of pod %s/%s and does not get it", pod.Namespace, pod.Name, o.Namespace, o.Name),
				"delete one of the pods; please report how it came to that")
			continue
		}
		r.podIPs[ip] = k
		pod.IPs = pod.IPs.Add(ip)
	}
	return pod
}

func comparePods(a, b model.PodKey) int {
	return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.IfName, b.IfName))
}

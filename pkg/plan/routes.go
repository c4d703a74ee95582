package plan

import (
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// routes is our whole routing table. Where no node and no pod claims a mesh
// address the packet is refused instead of leaving by the default route. A node
// may have all of its cluster's prefix: the refusal stands behind its route, and
// is there when the kernel drops that with a link, or an agent that has just
// started does not know the node yet.
func (r *resolver) routes(remotes []remote) map[RouteKey]Route {
	out := make(map[RouteKey]Route, 2*len(remotes)+2*len(r.in.Pods)+8)
	for _, prefixes := range r.in.Mesh {
		for _, p := range prefixes {
			out[RouteKey{Dst: p.Masked(), Fallback: true}] = Route{Kind: Unreachable}
		}
	}
	add := func(k RouteKey, v Route) { out[k] = v }
	if r.in.Services {
		r.serviceRoutes(add)
	}
	for _, m := range remotes {
		r.remoteRoutes(m, add)
	}
	for _, p := range r.local.PodCIDRs.All() {
		out[RouteKey{Dst: p.Masked()}] = Route{Kind: Unreachable}
	}
	for _, pod := range r.pods {
		r.podRoutes(pod, add)
	}
	return out
}

func (r *resolver) remoteRoutes(m remote, add func(RouteKey, Route)) {
	for _, p := range m.pods.All() {
		add(RouteKey{Dst: p}, r.routeTo(m, p.Addr().Is6()))
	}
}

// serviceRoutes give the host's own packets to virtual addresses a source and a
// way, so that they get to where they are translated and routed anew; a node
// need not have a default route. What is not translated is refused there.
func (r *resolver) serviceRoutes(add func(RouteKey, Route)) {
	for _, p := range r.in.ServiceCIDRs {
		src := r.hostSource(p.Addr().Is6())
		for _, l := range r.in.Underlay.Addrs {
			if src.IsValid() && l.Prefix.Addr() == src {
				add(RouteKey{Dst: p.Masked()}, Route{Kind: Unicast, Dev: l.Dev, Src: src})
			}
		}
	}
}

func (r *resolver) podRoutes(pod model.Pod, add func(RouteKey, Route)) {
	for _, ip := range pod.IPs.All() {
		add(RouteKey{Dst: netip.PrefixFrom(ip, ip.BitLen())}, Route{Kind: Unicast, Dev: pod.HostIf, Src: r.hostSource(ip.Is6())})
	}
}

// routeTo is the route to a remote node's pods of one family.
func (r *resolver) routeTo(m remote, v6 bool) Route {
	h := m.hop(v6)
	switch {
	case h.direct():
		return Route{Kind: Unicast, Dev: h.dev, Gateway: h.gateway, Src: r.hostSource(v6), MTU: r.pathMTU(netip.Addr{})}
	case h.tunnel():
		return Route{Kind: Unicast, Dev: h.dev, Gateway: m.node.Key.TunnelMAC().LinkLocal(), OnLink: true,
			Src: r.routerIP(v6), MTU: r.pathMTU(h.outer),
			Encap: Encap{VNI: vni(m.node), Src: h.source, Dst: h.outer}}
	}
	return Route{Kind: Unreachable}
}

func (r *resolver) routerIP(v6 bool) netip.Addr {
	if v6 {
		return r.router.V6
	}
	return r.router.V4
}

// hostSource is the node's address for its own packets to pods that are reached
// without a tunnel: what others know it by. A node without an address of the
// pods' family uses its router address, which only a tunnel device can hold.
func (r *resolver) hostSource(v6 bool) netip.Addr {
	a := target(r.local).V4
	if v6 {
		a = target(r.local).V6
	}
	if a = r.usable(a); !a.IsValid() && r.hasTunnel() {
		a = r.routerIP(v6)
	}
	return a
}

// neighbours are the pods here, and the far end of the tunnel for every node
// that has one: all known, none ever asked for.
func (r *resolver) neighbours(remotes []remote) map[NeighbourKey]Neighbour {
	out := make(map[NeighbourKey]Neighbour, len(remotes)+2*len(r.in.Pods))
	add := func(k NeighbourKey, v Neighbour) { out[k] = v }
	for _, m := range remotes {
		r.remoteNeighbours(m, add)
	}
	for _, pod := range r.pods {
		podNeighbours(pod, add)
	}
	return out
}

// remoteNeighbours adds the far end of the tunnel also for a node that is sent
// to directly at the moment: if the way to it changes, route and neighbour
// change in any order, and a route without its neighbour loses packets.
func (r *resolver) remoteNeighbours(m remote, add func(NeighbourKey, Neighbour)) {
	if r.decapsulates(m) {
		mac := m.node.Key.TunnelMAC()
		add(NeighbourKey{TunnelName, mac.LinkLocal()}, Neighbour{mac})
	}
}

func podNeighbours(pod model.Pod, add func(NeighbourKey, Neighbour)) {
	if pod.MAC == (model.MAC{}) {
		return
	}
	for _, ip := range pod.IPs.All() {
		add(NeighbourKey{pod.HostIf, ip}, Neighbour{pod.MAC})
	}
}

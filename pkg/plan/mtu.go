package plan

import (
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Bytes that VXLAN puts in front of a packet: outer IP, UDP 8, VXLAN 8, inner
// Ethernet 14 (RFC 7348, section 5).
const (
	OverheadIPv4 = 20 + 8 + 8 + 14
	OverheadIPv6 = 40 + 8 + 8 + 14

	defaultMTU = 1500
	minMTUIPv6 = 1280 // RFC 8200, section 5
)

// PodMTU is the MTU of pod interfaces in bytes: what the underlay leaves after
// the backend's overhead. It does not depend on who is in
// the mesh, so it never changes while pods run; a path that carries less has
// its own MTU in its route.
func PodMTU(in Input) int {
	if in.Backend == model.EncapDirect {
		return underlayMTU(in)
	}
	return tunnelMTU(in)
}

func underlayMTU(in Input) int {
	switch {
	case in.MTU > 0:
		return in.MTU
	case in.Underlay.MTU > 0:
		return in.Underlay.MTU
	}
	return defaultMTU
}

// tunnelMTU is what fits through the tunnel with the outer family that this
// node prefers.
func tunnelMTU(in Input) int {
	local := in.Nodes[in.Local]
	if !local.Internal.V4.IsValid() && local.Internal.V6.IsValid() {
		return underlayMTU(in) - OverheadIPv6
	}
	return underlayMTU(in) - OverheadIPv4
}

// pathMTU is what fits to a node that is reached through outer; the zero Addr
// stands for direct.
func (r *resolver) pathMTU(outer netip.Addr) uint32 {
	mtu := underlayMTU(r.in)
	switch {
	case outer.Is4():
		mtu -= OverheadIPv4
	case outer.Is6():
		mtu -= OverheadIPv6
	}
	return min(uint32(mtu), r.podMTU)
}

// RouterIPs returns the first host address of each pod prefix. With a tunnel
// the node itself uses them as source towards remote pods, so that decapsulation
// at the other end sees a source inside the node's own prefix. No pod may get them.
func RouterIPs(podCIDRs model.Prefixes) model.Addrs {
	var out model.Addrs
	for _, p := range podCIDRs.All() {
		out = out.Add(p.Masked().Addr().Next())
	}
	return out
}

// hasTunnel tells whether this node can send or receive encapsulated packets.
// With auto it always can, because the other end may see the link differently.
func (r *resolver) hasTunnel() bool { return r.in.Backend != model.EncapDirect }

func (r *resolver) port() uint16 {
	if r.local.VXLANPort != 0 {
		return r.local.VXLANPort
	}
	return DefaultVXLANPort
}

func vni(n model.Node) uint32 {
	if n.VNI != 0 {
		return n.VNI
	}
	return DefaultVNI
}

// tunnels is the one device. Below the least MTU of IPv6 the kernel would give it
// no IPv6 address, and its next hops are of that family; routes have their own.
func (r *resolver) tunnels() map[string]Tunnel {
	if !r.hasTunnel() {
		return map[string]Tunnel{}
	}
	return map[string]Tunnel{TunnelName: {Port: r.port(), MTU: max(tunnelMTU(r.in), minMTUIPv6), MAC: r.in.Local.TunnelMAC(), Addrs: r.router}}
}

// sysctls are the node-wide settings; those of pod interfaces are set when the
// interface is made.
func (r *resolver) sysctls() map[string]string {
	out := map[string]string{}
	if r.local.PodCIDRs.V4.IsValid() {
		out["net/ipv4/ip_forward"] = "1"
	}
	if r.local.PodCIDRs.V6.IsValid() {
		out["net/ipv6/conf/all/forwarding"] = "1"
	}
	if r.hasTunnel() {
		// Loose: a node may be sent to directly and answer through its tunnel.
		out["net/ipv4/conf/"+TunnelName+"/rp_filter"] = "2"
		out["net/ipv6/conf/"+TunnelName+"/accept_ra"] = "0"
		// The tunnel's next hops are IPv6 link-local, also for IPv4 pods.
		out["net/ipv6/conf/"+TunnelName+"/disable_ipv6"] = "0"
	}
	return out
}

// Package model holds the values that all parts of clustermesh share: who is a
// node, which addresses does it have. Values are comparable, hold no pointers
// and do no I/O, so a row of any table can be compared with ==.
package model

import (
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"
)

// Addrs is at most one address per family. The zero Addr stands for none.
type Addrs struct{ V4, V6 netip.Addr }

// Prefixes is at most one prefix per family. The zero Prefix stands for none.
type Prefixes struct{ V4, V6 netip.Prefix }

// All returns the addresses that are there, IPv4 first.
func (a Addrs) All() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{a.V4, a.V6}, func(x netip.Addr) bool { return !x.IsValid() })
}

// Add returns a with addr in the slot of its family, unless that is taken.
func (a Addrs) Add(addr netip.Addr) Addrs {
	switch addr = addr.Unmap(); {
	case addr.Is4() && !a.V4.IsValid():
		a.V4 = addr
	case addr.Is6() && !a.V6.IsValid():
		a.V6 = addr
	}
	return a
}

// All returns the prefixes that are there, IPv4 first.
func (p Prefixes) All() []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{p.V4, p.V6}, func(x netip.Prefix) bool { return !x.IsValid() })
}

// Add returns p with prefix, masked, in the slot of its family, unless that is taken.
func (p Prefixes) Add(prefix netip.Prefix) Prefixes {
	switch prefix = prefix.Masked(); {
	case prefix.Addr().Is4() && !p.V4.IsValid():
		p.V4 = prefix
	case prefix.Addr().Is6() && !p.V6.IsValid():
		p.V6 = prefix
	}
	return p
}

// Contains tells whether one of the prefixes holds addr.
func (p Prefixes) Contains(addr netip.Addr) bool {
	return p.V4.IsValid() && p.V4.Contains(addr) || p.V6.IsValid() && p.V6.Contains(addr)
}

// NodeKey names a node of the mesh.
type NodeKey struct{ Cluster, Name string }

func (k NodeKey) String() string { return k.Cluster + "/" + k.Name }

// Compare orders keys by cluster, then by name.
func (k NodeKey) Compare(o NodeKey) int {
	return cmp.Or(strings.Compare(k.Cluster, o.Cluster), strings.Compare(k.Name, o.Name))
}

// Encap is how packets may be carried to a node.
type Encap string

// The ways of carrying packets. A node publishes what it is configured for; the
// sender picks (see plan.Routes).
const (
	EncapAuto   Encap = "auto"   // direct where the node is on-link, else vxlan
	EncapDirect Encap = "direct" // plain routes only
	EncapVXLAN  Encap = "vxlan"  // always encapsulated
)

// Node is what the mesh knows of one node.
type Node struct {
	Key       NodeKey
	Internal  Addrs    // addresses that other nodes send to
	External  Addrs    // for nodes that are reached from outside only
	Zone      string   // topology.kubernetes.io/zone; other clusters are not told
	PodCIDRs  Prefixes // the node's own share of its cluster's pod addresses
	Encap     Encap
	VXLANPort uint16
	VNI       uint32
	// WireGuardKey is the node's public key, all zero where encryption is off.
	WireGuardKey [32]byte
}

// MAC is a hardware address in comparable form.
type MAC [6]byte

// TunnelMAC is the hardware address of a node's tunnel device. It is a locally
// administered unicast address derived from the node's name, so that every
// sender knows it and no two nodes share one (the kernel drops a VXLAN frame
// whose inner source is the receiver's own address).
func (k NodeKey) TunnelMAC() MAC {
	h := sha256.Sum256([]byte("clustermesh tunnel\x00" + k.Cluster + "\x00" + k.Name))
	return MAC{0x02, h[0], h[1], h[2], h[3], h[4]}
}

// LinkLocal is the EUI-64 link-local address (RFC 4291, appendix A) of m.
func (m MAC) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: m[0] ^ 0x02, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// PodKey names an attachment of a pod: the container's sandbox and the name of
// the interface inside it (CNI specification, "attachment").
type PodKey struct{ ContainerID, IfName string }

// Pod is a pod interface on this node.
type Pod struct {
	Key       PodKey
	Namespace string // Kubernetes namespace and name, for people
	Name      string
	IPs       Addrs
	HostIf    string // name of the veth's end in the node's namespace
	MAC       MAC    // of the end inside the pod
	HostPorts string // see HostPorts
}

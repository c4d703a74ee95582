// Package peers plays clusters of a mesh for the benchmarks: a process of its
// own that serves any number of them, each behind a front of the product with
// the product's own encodings, and changes their rows when told to.
package peers

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Shape is the size of one peer.
type Shape struct{ Nodes, Identities, Endpoints int }

// Rows is how many rows that makes, beside the few that every peer has.
func (s Shape) Rows() int { return s.Nodes + s.Identities + s.Endpoints }

// Name of a peer.
func Name(peer int) string { return fmt.Sprintf("peer%03d", peer) }

// NodeName of a node of any peer.
func NodeName(node int) string { return fmt.Sprintf("node-%04d", node) }

// The addresses of a peer need only be nobody else's: 8,192 node ranges of 256
// addresses each from 32.0.0.0 on, node addresses from 100.64.0.0/10, which are
// on nobody's link. Numbers of peers and nodes stay below 256 and 8,192.
const nodesPerPeer = 8192

// PodCIDRs are the ranges that all pods of a peer lie in.
func PodCIDRs(peer int) []netip.Prefix {
	return []netip.Prefix{
		netip.PrefixFrom(addr4(32<<24|uint32(peer)*nodesPerPeer<<8), 11),
		netip.PrefixFrom(addr6(0xfd20, peer, 0, 0), 32),
	}
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

func addr6(parts ...int) netip.Addr {
	var b [16]byte
	for i, p := range parts {
		binary.BigEndian.PutUint16(b[2*i:], uint16(p))
	}
	return netip.AddrFrom16(b)
}

// Stamp is a number that a node's row carries through the mesh, and when it was
// due to be written. It travels as the node's public key, which nothing looks at.
type Stamp struct {
	Number uint64
	At     time.Time
}

func (s Stamp) key() (k [32]byte) {
	binary.BigEndian.PutUint64(k[:], s.Number)
	binary.BigEndian.PutUint64(k[8:], uint64(s.At.UnixNano()))
	return k
}

// StampOf reads what Node wrote.
func StampOf(n model.Node) Stamp {
	return Stamp{binary.BigEndian.Uint64(n.WireGuardKey[:]), time.Unix(0, int64(binary.BigEndian.Uint64(n.WireGuardKey[8:])))}
}

// Node is a node of a peer. home picks one of its two places in the network.
func Node(peer, node, home int, stamp Stamp) model.Node {
	place := uint32(peer*nodesPerPeer + node)
	return model.Node{
		Key: model.NodeKey{Cluster: Name(peer), Name: NodeName(node)},
		Internal: model.Addrs{
			V4: addr4(100<<24 | 64<<16 + uint32(home)<<21 + place),
			V6: addr6(0xfd64, home, peer, node, 0, 0, 0, 1),
		},
		PodCIDRs:     podCIDRs(peer, node),
		Encap:        model.EncapAuto,
		VXLANPort:    plan.DefaultVXLANPort,
		VNI:          plan.DefaultVNI,
		WireGuardKey: stamp.key(),
	}
}

func podCIDRs(peer, node int) model.Prefixes {
	return model.Prefixes{
		V4: netip.PrefixFrom(addr4(32<<24+uint32(peer*nodesPerPeer+node)<<8), 24),
		V6: netip.PrefixFrom(addr6(0xfd20, peer, node), 64),
	}
}

// rows are all rows of a peer but its heartbeat, by their tails.
func rows(peer int, s Shape, header wire.Cluster) map[string]string {
	out := map[string]string{wire.ClusterTail().String(): string(header.Encode())}
	for _, k := range plan.MarkedKinds() {
		out[wire.SyncedTail(k).String()] = string(wire.Synced{Incarnation: header.Incarnation}.Encode())
	}
	for n := range s.Nodes {
		out[wire.NodeTail(NodeName(n)).String()] = string(wire.EncodeNode(Node(peer, n, 0, Stamp{})))
	}
	ids := make([]uint64, s.Identities)
	for i := range ids {
		id := identity(peer, i)
		ids[i] = id.ID()
		out[wire.IdentityTail(id.Namespace, ids[i]).String()] = string(id.Encode())
	}
	for e := range s.Endpoints {
		node := e % s.Nodes
		ip := podCIDRs(peer, node).V4.Addr().As4()
		ip[3] = byte(1 + e/s.Nodes)
		value := wire.Endpoint{Node: NodeName(node), Ports: []wire.NamedPort{{Name: "http", Protocol: 6, Port: 8080}}}
		out[wire.EndpointTail("default", ids[e%len(ids)], netip.AddrFrom4(ip)).String()] = string(value.Encode())
	}
	return out
}

func identity(peer, i int) wire.Identity {
	app := fmt.Sprintf("app-%03d", i)
	return wire.Identity{
		Cluster: Name(peer), Namespace: "default",
		NamespaceLabels: map[string]string{"kubernetes.io/metadata.name": "default"},
		Labels:          map[string]string{"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/part-of": "shop"},
	}
}

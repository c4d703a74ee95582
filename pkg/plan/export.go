package plan

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ExportInput is all that a cluster's export depends on.
type ExportInput struct {
	Cluster wire.Cluster
	Nodes   map[model.NodeKey]model.Node // our own
	// Written tells that all rows of the last answer are in the store: only
	// then may the marks say so.
	Written bool
}

// Exports says which rows the cluster publishes, by the part of their keys
// behind wire.ExportPrefix. The heartbeat is not among them, it is no state.
func Exports(in ExportInput) map[string]string {
	rows := make(map[string]string, len(in.Nodes)+16)
	rows[wire.ClusterTail().String()] = string(in.Cluster.Encode())
	for key, n := range in.Nodes {
		if key.Cluster != in.Cluster.Name || n.Internal == (model.Addrs{}) && n.External == (model.Addrs{}) {
			continue // nobody could reach it
		}
		rows[wire.NodeTail(key.Name).String()] = string(wire.EncodeNode(n))
	}
	if in.Written {
		mark := string(wire.Synced{Incarnation: in.Cluster.Incarnation}.Encode())
		for _, k := range MarkedKinds() {
			rows[wire.SyncedTail(k).String()] = mark
		}
	}
	return rows
}

// MarkedKinds are the kinds that a complete export has marks for. Those that
// have no rows yet are among them: that there are none is then certain.
func MarkedKinds() []wire.Kind {
	return slices.DeleteFunc(wire.Kinds(), func(k wire.Kind) bool { return k == wire.KindSynced || k == wire.KindHeartbeat })
}

// ReachInput says how the mesh API can be reached from other clusters.
type ReachInput struct {
	Config   config.APIServer
	Nodes    map[model.NodeKey]model.Node
	Hosts    []string // names of the nodes that API servers run on
	NodePort uint16   // of the Service; 0: none yet
	Port     uint16   // of the Service's load balancer
	Ingress  []string // addresses and names of the load balancer
}

// maxEndpoints is how many endpoints are announced: enough that some answer.
const maxEndpoints = 16

// Endpoints lists host:port of the mesh API as peers should dial it.
func Endpoints(in ReachInput) []string {
	if len(in.Config.Advertise) > 0 {
		return in.Config.Advertise
	}
	var out []string
	switch in.Config.Exposure {
	case config.ExposureHostNetwork:
		out = nodeEndpoints(in.Nodes, uint16(in.Config.Port), func(k model.NodeKey) bool { return slices.Contains(in.Hosts, k.Name) })
	case config.ExposureNodePort:
		out = nodeEndpoints(in.Nodes, in.NodePort, func(model.NodeKey) bool { return in.NodePort != 0 })
	case config.ExposureLoadBalancer:
		for _, host := range in.Ingress {
			out = append(out, hostPort(host, in.Port))
		}
	}
	return out[:min(len(out), maxEndpoints)]
}

func hostPort(host string, port uint16) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return host + ":" + strconv.Itoa(int(port))
}

// nodeEndpoints takes the first address of every node before the second of any,
// so that a cut list still names as many nodes as possible.
func nodeEndpoints(nodes map[model.NodeKey]model.Node, port uint16, use func(model.NodeKey) bool) []string {
	var keys []model.NodeKey
	for k := range nodes {
		if use(k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, model.NodeKey.Compare)
	var out []string
	for i := range 4 {
		for _, k := range keys {
			if addrs := reachableAt(nodes[k]); i < len(addrs) {
				out = append(out, netip.AddrPortFrom(addrs[i], port).String())
			}
		}
	}
	return out
}

func reachableAt(n model.Node) []netip.Addr {
	out := n.Internal.All()
	for _, a := range n.External.All() {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func exportNode(name, internal, external string) (model.NodeKey, model.Node) {
	k := model.NodeKey{Cluster: "east", Name: name}
	n := model.Node{Key: k, Encap: model.EncapAuto, VXLANPort: 8472, VNI: 7473}
	if internal != "" {
		n.Internal = n.Internal.Add(netip.MustParseAddr(internal))
	}
	if external != "" {
		n.External = n.External.Add(netip.MustParseAddr(external))
	}
	return k, n
}

func TestExports(t *testing.T) {
	nodes := map[model.NodeKey]model.Node{}
	for _, x := range [][3]string{{"n1", "192.0.2.1", ""}, {"n2", "2001:db8::2", ""}, {"no-address", "", ""}} {
		k, n := exportNode(x[0], x[1], x[2])
		nodes[k] = n
	}
	foreign := model.NodeKey{Cluster: "west", Name: "n1"}
	nodes[foreign] = model.Node{Key: foreign, Internal: nodes[model.NodeKey{Cluster: "east", Name: "n1"}].Internal}
	cluster := wire.Cluster{Name: "east", Incarnation: "i1"}

	for name, c := range map[string]struct {
		written bool
		want    []string
	}{
		"before the first pass there is no mark": {false, []string{"cluster", "node/n1", "node/n2"}},
		"after it all kinds are marked": {true, []string{"cluster", "node/n1", "node/n2", "synced/cluster", "synced/endpoint", "synced/export",
			"synced/grant", "synced/identity", "synced/node", "synced/service", "synced/slice"}},
	} {
		t.Run(name, func(t *testing.T) {
			rows := Exports(ExportInput{Cluster: cluster, Nodes: nodes, Written: c.written})
			if d := cmp.Diff(c.want, slices.Sorted(maps.Keys(rows))); d != "" {
				t.Error(d)
			}
			n, err := wire.DecodeNode(model.NodeKey{Cluster: "east", Name: "n2"}, []byte(rows["node/n2"]))
			if err != nil || n != nodes[n.Key] {
				t.Errorf("node n2 came out as %+v, %v", n, err)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	nodes := map[model.NodeKey]model.Node{}
	for _, x := range [][3]string{{"n1", "192.0.2.1", "198.51.100.1"}, {"n2", "192.0.2.2", ""}, {"n3", "2001:db8::3", ""}} {
		k, n := exportNode(x[0], x[1], x[2])
		nodes[k] = n
	}
	many := map[model.NodeKey]model.Node{}
	for i := range 40 {
		k, n := exportNode(fmt.Sprintf("n%02d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("198.51.100.%d", i+1))
		many[k] = n
	}
	for name, c := range map[string]struct {
		in   ReachInput
		want []string
	}{
		"advertise wins":            {ReachInput{Config: config.APIServer{Advertise: []string{"mesh.example:1"}, Exposure: config.ExposureHostNetwork, Port: 7473}, Nodes: nodes, Hosts: []string{"n1"}}, []string{"mesh.example:1"}},
		"HostNetwork: where we run": {ReachInput{Config: config.APIServer{Exposure: config.ExposureHostNetwork, Port: 7473}, Nodes: nodes, Hosts: []string{"n3", "n1", "gone"}}, []string{"192.0.2.1:7473", "[2001:db8::3]:7473", "198.51.100.1:7473"}},
		"NodePort: every node":      {ReachInput{Config: config.APIServer{Exposure: config.ExposureNodePort, Port: 7473}, Nodes: nodes, NodePort: 30473}, []string{"192.0.2.1:30473", "192.0.2.2:30473", "[2001:db8::3]:30473", "198.51.100.1:30473"}},
		"NodePort: not allocated":   {ReachInput{Config: config.APIServer{Exposure: config.ExposureNodePort, Port: 7473}, Nodes: nodes}, nil},
		"LoadBalancer":              {ReachInput{Config: config.APIServer{Exposure: config.ExposureLoadBalancer}, Port: 443, Ingress: []string{"203.0.113.5", "2001:db8::5", "lb.example"}}, []string{"203.0.113.5:443", "[2001:db8::5]:443", "lb.example:443"}},
		"LoadBalancer: not there":   {ReachInput{Config: config.APIServer{Exposure: config.ExposureLoadBalancer}, Port: 443}, nil},
		"many nodes: one address of": {ReachInput{Config: config.APIServer{Exposure: config.ExposureNodePort}, Nodes: many, NodePort: 1}, slices.Collect(func(yield func(string) bool) {
			for i := range 16 {
				if !yield(fmt.Sprintf("192.0.2.%d:1", i+1)) {
					return
				}
			}
		})},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, Endpoints(c.in)); d != "" {
				t.Error(d)
			}
		})
	}
}

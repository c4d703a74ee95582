package mcs

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// now is when the tests happen, in milliseconds.
const now = 1_800_000_000_000

// world is some clusters that tell each other what they publish.
type world struct {
	t        *testing.T
	clusters map[string]*cluster
}

type cluster struct {
	planner *Planner
	plan    *Plan
	addrs   int
}

var web = model.ServiceKey{Namespace: "shop", Name: "web"}

// newWorld makes clusters that all have the namespace shop.
func newWorld(t *testing.T, names ...string) *world {
	w := &world{t, map[string]*cluster{}}
	for _, n := range names {
		peers := map[string]Peer{}
		for _, o := range names {
			if o != n {
				peers[o] = Peer{}
			}
		}
		c := &cluster{planner: NewPlanner(Base{Cluster: n}, now)}
		c.planner.SetPeers(peers)
		c.planner.SetNamespaces([]string{web.Namespace}, nil)
		w.clusters[n] = c
	}
	return w
}

// settle lets all clusters plan until nothing changes any more.
func (w *world) settle() {
	w.t.Helper()
	for range 10 {
		quiet := true
		for _, name := range slices.Sorted(maps.Keys(w.clusters)) {
			c := w.clusters[name]
			c.plan = c.planner.Plan()
			carried, allocated := w.carry(name, c.plan.Patch.Wire), c.allocate(c.plan.Patch.Services)
			quiet = quiet && carried && allocated
		}
		if quiet {
			return
		}
	}
	w.t.Fatal("clusters do not come to rest")
}

// carry tells the others what a cluster has published.
func (w *world) carry(from string, c Changes[string, string]) (quiet bool) {
	for _, o := range slices.Sorted(maps.Keys(w.clusters)) {
		if o != from {
			receive(w.t, w.clusters[o].planner, from, c)
		}
	}
	return len(c.Set)+len(c.Del) == 0
}

func receive(t *testing.T, p *Planner, from string, c Changes[string, string]) {
	for tail, value := range c.Set {
		switch x := parsed(t, tail); x.Kind {
		case wire.KindExport:
			p.SetClaims(map[model.ExportKey]string{{Cluster: from, Namespace: x.Name[0], Name: x.Name[1]}: value}, nil)
		case wire.KindSlice:
			p.SetSlices(map[model.SliceKey]string{{Cluster: from, Namespace: x.Name[0], Name: x.Name[1]}: value}, nil)
		}
	}
	for _, tail := range c.Del {
		switch x := parsed(t, tail); x.Kind {
		case wire.KindExport:
			p.SetClaims(nil, []model.ExportKey{{Cluster: from, Namespace: x.Name[0], Name: x.Name[1]}})
		case wire.KindSlice:
			p.SetSlices(nil, []model.SliceKey{{Cluster: from, Namespace: x.Name[0], Name: x.Name[1]}})
		}
	}
}

func parsed(t *testing.T, tail string) wire.Tail {
	x, err := wire.ParseTail(tail)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// allocate gives derived Services addresses, as Kubernetes does.
func (c *cluster) allocate(ch Changes[model.ServiceKey, DerivedService]) (quiet bool) {
	for k, s := range ch.Set {
		if _, has := c.planner.addrs[k]; has {
			continue
		}
		spec, _ := wire.DecodeExport([]byte(s.Spec))
		var out []string
		for _, f := range spec.IPFamilies {
			c.addrs++
			out = append(out, fmt.Sprintf(map[string]string{IPv4: "10.96.0.%d", IPv6: "fd00:96::%d"}[f], c.addrs))
		}
		c.planner.SetAddrs(map[model.ServiceKey]DerivedAddrs{k: {s.Import, strings.Join(out, " ")}}, nil)
	}
	c.planner.SetAddrs(nil, ch.Del)
	return len(ch.Set)+len(ch.Del) == 0
}

// hello is a Service as the conformance suite has it.
func hello(change ...func(*wire.Export)) wire.Export {
	e := wire.Export{Type: ClusterSetIP, SessionAffinity: "ClientIP", AffinitySeconds: 10, InternalPolicy: "Cluster", IPFamilies: []string{IPv4},
		Ports: []wire.Port{{Name: "tcp", Protocol: 6, Port: 42}, {Name: "udp", Protocol: 17, Port: 42}}}
	for _, f := range change {
		f(&e)
	}
	return e
}

func headless(e *wire.Export) { e.Type = Headless }

func ports(list ...wire.Port) func(*wire.Export) { return func(e *wire.Export) { e.Ports = list } }

func tcp(name string, port uint16) wire.Port { return wire.Port{Name: name, Protocol: 6, Port: port} }

func (w *world) service(in string, spec wire.Export) {
	w.clusters[in].planner.SetServices(map[model.ServiceKey]Service{web: {Spec: string(spec.Encode())}}, nil)
}

// export creates a ServiceExport, age seconds before now.
func (w *world) export(in string, age int, labels map[string]string) {
	meta := wire.Export{Labels: labels, Annotations: labels}
	w.clusters[in].planner.SetExports(map[model.ServiceKey]Export{web: {CreatedMilli: uint64(now - 1000*age), Meta: string(meta.Encode())}}, nil)
}

func (w *world) unexport(in string) {
	w.clusters[in].planner.SetExports(nil, []model.ServiceKey{web})
}

// pods makes an EndpointSlice of ready pods for the Service's ports, each of which
// leads to port 42 of the pods.
func (w *world) pods(in string, spec wire.Export, addrs ...string) {
	s := wire.Slice{Service: web.Name}
	for _, p := range spec.Ports {
		s.Ports = append(s.Ports, wire.Port{Name: p.Name, Protocol: p.Protocol, Port: 42})
	}
	for i, a := range addrs {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true, Zone: "a", Hostname: fmt.Sprintf("web-%d", i), Node: "n1", ForZones: "a"})
	}
	w.clusters[in].planner.SetSlices(map[model.SliceKey]string{{Cluster: in, Namespace: web.Namespace, Name: "web-" + in + "-" + strings.ToLower(familyOf(s.Endpoints[0].Addr))}: string(s.Encode())}, nil)
}

// all is service, export and pods in one.
func (w *world) all(in string, age int, spec wire.Export, addrs ...string) {
	w.service(in, spec)
	w.export(in, age, nil)
	if len(addrs) > 0 {
		w.pods(in, spec, addrs...)
	}
}

// imported is the import of web in a cluster, decoded.
func (w *world) imported(in string) (Import, wire.Export, bool) {
	row, ok := w.clusters[in].plan.Imports[web]
	spec, err := row.Decode()
	if ok && err != nil {
		w.t.Fatal(err)
	}
	return row, spec, ok
}

func (w *world) status(in string) ExportStatus { return w.clusters[in].plan.Exports[web] }

// backends are, by port of the derived Service in a cluster, the addresses that
// traffic to it goes to, as a service proxy would see it.
func (w *world) backends(in string) map[string][]string {
	c := w.clusters[in]
	out := map[string][]string{}
	for key, d := range c.plan.Services {
		spec, err := wire.DecodeExport([]byte(d.Spec))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range spec.Ports {
			var list []string
			for _, row := range c.plan.Slices {
				s, err := wire.DecodeSlice([]byte(row.Slice))
				if err != nil {
					w.t.Fatal(err)
				}
				for _, q := range s.Ports {
					if s.Service != key.Name || q.Name != p.Name || q.Protocol != p.Protocol {
						continue
					}
					for _, e := range s.Endpoints {
						list = append(list, e.Addr.String())
					}
				}
			}
			slices.Sort(list)
			out[fmt.Sprintf("%s/%d", protocols[p.Protocol], p.Port)] = list
		}
	}
	return out
}

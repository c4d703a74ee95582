package mcs

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// derivedName is a name that follows from parts, the same in every run.
func derivedName(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return DerivedPrefix + hex.EncodeToString(h[:10])
}

// imported is what our cluster makes of a decision.
type imported struct {
	spec    wire.Export // with the families that there are here
	row     Import      // but for Slices
	service model.ServiceKey
	derived DerivedService // of ClusterSetIP; zero: none
}

// importOf makes the import. families are those of our Services; addrs returns the
// addresses of derived ones.
func importOf(k model.ServiceKey, d *decision, families []string, addrs func(model.ServiceKey) string) imported {
	x := imported{spec: d.spec}
	here := slices.DeleteFunc(slices.Clone(d.spec.IPFamilies), func(f string) bool {
		return len(families) > 0 && !slices.Contains(families, f)
	})
	x.row = Import{Clusters: strings.Join(d.clusters(), " "), Ready: Condition{TypeReady, conditionTrue, ReasonReady, "it can be used"}}
	switch {
	case len(here) == 0:
		x.row.Ready = Condition{TypeReady, conditionFalse, ReasonNoFamily,
			"it is exported for " + strings.Join(d.spec.IPFamilies, ", ") + ", Services of this cluster have " + strings.Join(families, ", ")}
	case d.spec.Type == ClusterSetIP:
		x.spec.IPFamilies = here
		x.service = DerivedKey(k, here[0])
		x.derived = DerivedService{Import: k.Name, Spec: derivedSpec(x.spec)}
		x.row.IPs = inOrder(here, addrs(x.service))
		if x.row.IPs == "" {
			x.row.Ready = Condition{TypeReady, conditionFalse, ReasonPending, "Service " + x.service.Name + " has no addresses yet"}
		}
	default:
		x.spec.IPFamilies = here
	}
	x.row.Spec = string(x.spec.Encode())
	return x
}

// derivedSpec is what the derived Service has of the import.
func derivedSpec(spec wire.Export) string {
	spec.Labels, spec.Annotations = nil, nil
	spec.TrafficDistribution = "" // it is for whoever gives hints, and an older API server refuses newer values
	ports := slices.Clone(spec.Ports)
	for i, p := range ports {
		ports[i].Name = derivedPortName(spec, p)
	}
	spec.Ports = ports
	return string(spec.Encode())
}

// inOrder returns an address for each family, in that order (N17); nothing as
// long as one lacks.
func inOrder(families []string, addrs string) string {
	var out []string
	for _, f := range families {
		for text := range strings.FieldsSeq(addrs) {
			if a, err := netip.ParseAddr(text); err == nil && familyOf(a) == f {
				out = append(out, a.String())
				break
			}
		}
	}
	if len(out) < len(families) {
		return ""
	}
	return strings.Join(out, " ")
}

func familyOf(a netip.Addr) string {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

// slice makes the derived slice of a slice of one cluster (N26); there is none if
// nobody could use it. derived are the derived objects' ports by those of the
// cluster.
func (x *imported) slice(name string, from model.SliceKey, own string, s wire.Slice, derived map[portName]wire.Port) (model.ServiceKey, DerivedSlice, bool) {
	if len(s.Endpoints) == 0 || x.row.Ready.Reason == ReasonNoFamily {
		return model.ServiceKey{}, DerivedSlice{}, false
	}
	family := familyOf(s.Endpoints[0].Addr)
	var ports []wire.Port
	for _, p := range s.Ports {
		d, ok := derived[portName{p.Name, p.Protocol}]
		d.Port = p.Port // of the pods
		if ok && p.Port != 0 && !slices.ContainsFunc(ports, func(q wire.Port) bool { return q.Name == d.Name }) {
			ports = append(ports, d)
		}
	}
	if len(ports) == 0 && x.spec.Type == ClusterSetIP || !slices.Contains(x.spec.IPFamilies, family) {
		return model.ServiceKey{}, DerivedSlice{}, false
	}
	s.Service, s.Ports, s.Source = x.service.Name, ports, "" // the object's label says that
	if from.Cluster != own {
		s.Endpoints = abroad(s.Endpoints) // what it says of nodes is not about ours
	}
	key := model.ServiceKey{Namespace: from.Namespace, Name: derivedName(name, from.Cluster, from.Name, family)}
	return key, DerivedSlice{Import: name, Source: from.Cluster, Slice: string(s.Encode())}, true
}

// abroad is what endpoints are to other clusters. Kubernetes would refuse a whole
// slice for a host name that is none.
func abroad(list []wire.SliceEndpoint) []wire.SliceEndpoint {
	out := slices.Clone(list)
	for i := range out {
		out[i].Node, out[i].ForZones, out[i].ForNodes = "", "", ""
		if h := out[i].Hostname; h != "" && len(validation.IsDNS1123Label(h)) > 0 {
			out[i].Hostname = ""
		}
	}
	return out
}

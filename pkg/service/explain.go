package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Explanation is what became of one port of a Service on this node, and why.
type Explanation struct {
	Port      model.ServicePortKey
	Row       model.ServicePort
	Fronts    []ExplainedFront
	Endpoints []ExplainedEndpoint // sorted by address
}

// ExplainedFront is a front that the port claims. Owner is who has it.
type ExplainedFront struct {
	Key   FrontKey
	Front Front
	Owner model.ServicePortKey
}

// ExplainedEndpoint is one endpoint of any slice.
type ExplainedEndpoint struct {
	AddrPort   netip.AddrPort
	Node, Zone string
	Used       bool
	Why        string
}

// Explain explains the ports of a Service by the rows and the base of the last
// call of Plan; those of all Services if name is empty.
func (p *Planner) Explain(namespace, name string) []Explanation {
	var out []Explanation
	for key, row := range p.ports {
		if name != "" && (key.Namespace != namespace || key.Name != name) {
			continue
		}
		r := ref{key.Namespace, key.Name}
		e := Explanation{Port: key, Row: row}
		for _, k := range p.of(r).fronts {
			for _, c := range p.claims[k] {
				if c.owner == key {
					e.Fronts = append(e.Fronts, ExplainedFront{k, c.front, p.claims[k][0].owner})
				}
			}
		}
		slices.SortFunc(e.Fronts, func(a, b ExplainedFront) int { return compareFronts(a.Key, b.Key) })
		b := p.builder(r)
		e.Endpoints = b.explain(key, row)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Explanation) int {
		return cmp.Or(cmp.Compare(a.Port.Service(), b.Port.Service()), cmp.Compare(a.Row.Port, b.Row.Port), cmp.Compare(a.Row.Protocol, b.Row.Protocol))
	})
	return out
}

func compareFronts(a, b FrontKey) int {
	outside := 0
	if a.Outside != b.Outside {
		outside = 1
		if b.Outside {
			outside = -1
		}
	}
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), outside)
}

// explain says of every endpoint why it is used, or is not.
func (b *builder) explain(key model.ServicePortKey, s model.ServicePort) []ExplainedEndpoint {
	all := b.backends(key, s)
	used := map[netip.AddrPort]bool{}
	for _, six := range []bool{false, true} {
		of := slices.DeleteFunc(slices.Clone(all), func(e backend) bool { return e.Addr.Is6() != six })
		for _, e := range usable(b.near(of)) {
			used[e.addrPort()] = true
		}
	}
	out := make([]ExplainedEndpoint, 0, len(all))
	for _, e := range all {
		x := ExplainedEndpoint{AddrPort: e.addrPort(), Node: e.Node, Zone: e.Zone, Used: used[e.addrPort()]}
		x.Why = b.why(e, x.Used, s)
		out = append(out, x)
	}
	return out
}

func (b *builder) why(e backend, used bool, s model.ServicePort) string {
	here := e.Node == b.base.Node
	switch {
	case used && e.Terminating && !e.Ready:
		return "terminating, but still serving, and no other is ready"
	case used && s.InternalLocal && !here:
		return "ready, but only for external addresses: internalTrafficPolicy is Local, and it is on another node"
	case used && s.ExternalLocal && !here:
		return "ready, but not for clients outside: externalTrafficPolicy is Local, and it is on another node"
	case used:
		return "ready"
	case e.Ready:
		return "ready, but hints say that this node uses others: for nodes " + orNone(e.ForNodes) + ", zones " + orNone(e.ForZones)
	case e.Terminating && e.Serving:
		return "terminating, and others are ready"
	case e.Terminating:
		return "terminating, and not serving any more"
	}
	return "not ready"
}

func orNone(s string) string { return cmp.Or(s, "(none)") }

package mcs

import (
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// replanOwn computes the conditions of our ServiceExport and what we publish, but
// for slices.
func (p *Planner) replanOwn(k model.ServiceKey, e *entry) {
	st := e.own.status
	if _, takesPart := e.decision.claim(p.base.Cluster); takesPart {
		st.Conflict = e.decision.conflict
		if hidden := p.blind(k.Namespace); hidden != "" {
			st.Ready.Message = "spec.export.namespaces of their Peers keeps it from clusters " + hidden + "; the others can see it"
		}
	} else if i := slices.IndexFunc(e.decision.refused, func(r refusal) bool { return r.cluster == p.base.Cluster }); i >= 0 {
		st.Ready = Condition{TypeReady, conditionFalse, ReasonPending, e.decision.refused[i].why + "; " + e.decision.refused[i].remedy}
	}
	if st == (ExportStatus{}) {
		p.out.exports.drop(k)
	} else {
		p.out.exports.put(k, st)
	}
	e.visible = false
	for _, peer := range p.peers {
		e.visible = e.visible || peer.sees(k.Namespace)
	}
	wanted := map[string]string{}
	if e.visible && e.own.claim != "" {
		wanted[wire.ExportTail(k.Namespace, k.Name).String()] = e.own.claim
	}
	if e.visible && e.own.shared != "" {
		wanted[wire.ServiceTail(k.Namespace, k.Name).String()] = e.own.shared
	}
	for tail := range e.tails {
		if _, still := wanted[tail]; !still {
			p.out.wire.drop(tail)
		}
	}
	clear(e.tails)
	for tail, value := range wanted {
		p.out.wire.put(tail, value)
		e.tails[tail] = true
	}
}

// blind are the peers that may not read a namespace, sorted.
func (p *Planner) blind(namespace string) string {
	var out []string
	for name, peer := range p.peers {
		if !peer.sees(namespace) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return named(out)
}

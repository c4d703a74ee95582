package mcs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// linesOf is what can't be done as asked under one name.
func (p *Planner) linesOf(k model.ServiceKey, e *entry) (out []status.Line) {
	add := func(object, message, remedy string) {
		out = append(out, status.Line{Key: status.Key{Component: "mcs", Object: object}, Level: status.Degraded, Message: message, Remedy: remedy})
	}
	for _, r := range e.decision.refused {
		add(fmt.Sprintf("export %s of %s", k, r.cluster), "it takes no part: "+r.why, r.remedy)
	}
	s := p.services[k]
	var problems, remedies []string
	if s.Problem != "" {
		problems, remedies = append(problems, s.Problem), append(remedies, "correct the annotations of the Service")
	}
	if policy, err := ParsePolicy(s.Global.Clusters); err == nil && s.Global.Clusters != "" {
		for _, name := range policy.Names() {
			if _, known := p.peers[name]; !known && name != p.base.Cluster {
				problems = append(problems, "annotation "+AnnotationClusters+": there is no Peer "+name)
				remedies = append(remedies, "connect cluster "+name+", or take it out of the annotation")
			}
		}
	}
	for _, from := range slices.SortedFunc(maps.Keys(e.left), func(a, b model.SliceKey) int { return strings.Compare(a.Name, b.Name) }) {
		problems = append(problems, fmt.Sprintf("endpoint %v is not exported: it is not in cluster.podCIDRs", e.left[from]))
		remedies = append(remedies, "let the Service select pods that have addresses of their own (no hostNetwork)")
		break
	}
	if len(problems) > 0 { // one line an object
		add("service "+k.String(), strings.Join(problems, "; "), strings.Join(slices.Compact(remedies), "; "))
	}
	return out
}

// Lines is all that can't be done as asked, sorted.
func (p *Planner) Lines() []status.Line {
	var out []status.Line
	for _, e := range p.entries {
		out = append(out, e.lines...)
	}
	slices.SortFunc(out, func(a, b status.Line) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Message, b.Message))
	})
	return out
}

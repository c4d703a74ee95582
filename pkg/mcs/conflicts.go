package mcs

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The conditions of ServiceExports and ServiceImports, and their reasons (N14, N19 to N21).
const (
	TypeValid    = "Valid"
	TypeReady    = "Ready"
	TypeConflict = "Conflict"

	ReasonValid       = "Valid"
	ReasonNoService   = "NoService"
	ReasonInvalidType = "InvalidServiceType"
	ReasonExported    = "Exported"
	ReasonReady       = "Ready"
	ReasonPending     = "Pending"
	ReasonFailed      = "Failed"
	ReasonNoConflicts = "NoConflicts"
	ReasonNoFamily    = "IPFamilyNotSupported"

	ReasonPort            = "PortConflict"
	ReasonType            = "TypeConflict"
	ReasonAffinity        = "SessionAffinityConflict"
	ReasonAffinityConfig  = "SessionAffinityConfigConflict"
	ReasonLabels          = "LabelsConflict"
	ReasonAnnotations     = "AnnotationsConflict"
	ReasonInternalPolicy  = "InternalTrafficPolicyConflict"
	ReasonDistribution    = "TrafficDistributionConflict"
	ReasonFamily          = "IPFamilyConflict"
	conditionTrue         = "True"
	conditionFalse        = "False"
	maxNamed              = 8 // clusters and ports that a message names
	maxValue, maxConflict = 200, 16 << 10
)

// property is a field in which the oldest export wins whole.
type property struct {
	reason, field string
	value         func(wire.Export) string
	// differs tells whether b does not go with a, the winner; nil: if the values differ.
	differs func(a, b wire.Export) bool
}

func properties() []property {
	return []property{
		{ReasonType, "type", func(e wire.Export) string { return e.Type }, nil},
		{ReasonAffinity, "sessionAffinity", func(e wire.Export) string { return cmp.Or(e.SessionAffinity, "None") }, nil},
		{ReasonAffinityConfig, "sessionAffinityConfig", func(e wire.Export) string { return fmt.Sprintf("%d s", e.AffinitySeconds) },
			func(a, b wire.Export) bool {
				return a.SessionAffinity == b.SessionAffinity && a.AffinitySeconds != b.AffinitySeconds
			}},
		{ReasonInternalPolicy, "internalTrafficPolicy", func(e wire.Export) string { return cmp.Or(e.InternalPolicy, "Cluster") }, nil},
		{ReasonDistribution, "trafficDistribution", func(e wire.Export) string { return cmp.Or(e.TrafficDistribution, "(none)") }, nil},
		{ReasonLabels, "exportedLabels", func(e wire.Export) string { return mapText(e.Labels) },
			func(a, b wire.Export) bool { return !maps.Equal(a.Labels, b.Labels) }},
		{ReasonAnnotations, "exportedAnnotations", func(e wire.Export) string { return mapText(e.Annotations) },
			func(a, b wire.Export) bool { return !maps.Equal(a.Annotations, b.Annotations) }},
		// Families that others have besides cost nobody anything (N17).
		{ReasonFamily, "ipFamilies", func(e wire.Export) string { return strings.Join(families(e.IPFamilies), ", ") },
			func(a, b wire.Export) bool {
				return slices.ContainsFunc(a.IPFamilies, func(f string) bool { return !slices.Contains(b.IPFamilies, f) })
			}},
	}
}

func mapText(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return cmp.Or(wire.Shown(strings.Join(out, ", "), maxValue), "(none)")
}

// conflict is the condition of all exports that take part. It says the same on
// all of them, in every cluster.
func conflict(d *decision, lost []lostPort) Condition {
	var reasons, messages []string
	if text := portConflict(d.claims, lost); text != "" {
		reasons, messages = append(reasons, ReasonPort), append(messages, text)
	}
	for _, p := range properties() {
		if text := p.conflict(d.claims); text != "" {
			reasons, messages = append(reasons, p.reason), append(messages, text)
		}
	}
	if len(reasons) == 0 {
		return Condition{TypeConflict, conditionFalse, ReasonNoConflicts, "all exports of this name agree"}
	}
	winner := d.claims[0]
	messages = append(messages, fmt.Sprintf("the oldest export, of %s, is cluster %s's", moment(winner.CreatedMilli), winner.cluster))
	return Condition{TypeConflict, conditionTrue, strings.Join(reasons, ","), wire.Shown(strings.Join(messages, "; "), maxConflict)}
}

// conflict says which clusters differ from the oldest; empty: none does.
func (p property) conflict(claims []claim) string {
	winner := claims[0]
	differs := p.differs
	if differs == nil {
		differs = func(a, b wire.Export) bool { return p.value(a) != p.value(b) }
	}
	var others []string
	for _, c := range claims[1:] {
		if differs(winner.Export, c.Export) {
			others = append(others, fmt.Sprintf("%s of %s", p.value(c.Export), c.cluster))
		}
	}
	if len(others) == 0 {
		return ""
	}
	return fmt.Sprintf("%s: %s of %s is used, not %s", p.field, p.value(winner.Export), winner.cluster, named(others))
}

// portConflict says which ports are not used, and which not all clusters have.
// Differing sets are a conflict even if their union works (N23).
func portConflict(claims []claim, lost []lostPort) string {
	var out []string
	for _, l := range lost {
		switch {
		case l.of == "":
			out = append(out, fmt.Sprintf("%s of %s is not used, %d are the most", portText(l.port), l.claim, maxPorts))
		case number(l.port) == number(l.winner):
			out = append(out, fmt.Sprintf("%s of %s goes by what %s of %s says", portText(l.port), l.claim, portText(l.winner), l.of))
		default:
			out = append(out, fmt.Sprintf("%s of %s is not used, %s of %s is", portText(l.port), l.claim, portText(l.winner), l.of))
		}
	}
	exposed, order := map[portNumber]int{}, []wire.Port(nil)
	for _, c := range claims {
		for _, p := range c.Ports {
			if exposed[number(p)]++; exposed[number(p)] == 1 {
				order = append(order, p)
			}
		}
	}
	for _, p := range order {
		if n := exposed[number(p)]; n < len(claims) && !slices.ContainsFunc(lost, func(l lostPort) bool { return l.port == p || l.winner == p }) {
			out = append(out, fmt.Sprintf("%s is used, but only %d of %d clusters have it", portText(p), n, len(claims)))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "ports: " + named(out)
}

// named joins a list whose end is left out if it is long.
func named(list []string) string {
	if more := len(list) - maxNamed; more > 0 {
		list = append(list[:maxNamed:maxNamed], fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, ", ")
}

func moment(milli uint64) string { return time.UnixMilli(int64(milli)).UTC().Format(time.RFC3339) }

package mcs

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The annotations of Services, each with the spelling of Cilium's that is
// accepted as well.
const (
	AnnotationGlobal   = "clustermesh.io/global"
	AnnotationShared   = "clustermesh.io/shared"
	AnnotationAffinity = "clustermesh.io/affinity"
	AnnotationClusters = "clustermesh.io/clusters"

	ciliumPrefix = "service.cilium.io/"
	ourPrefix    = "clustermesh.io/"
)

// Global is what the annotations of a Service say.
type Global struct {
	Global bool // it uses the backends of all clusters
	Shared bool // others may use its own
	// Clusters is a Policy in text form; empty: all alike.
	Clusters string
}

// ParseAnnotations reads the annotations of a Service. Those that can't be used
// are as if they were not there, and the error says of each why.
func ParseAnnotations(a map[string]string) (Global, error) {
	global, err1 := yesOrNo(a, AnnotationGlobal, false)
	if !global {
		return Global{}, err1
	}
	g := Global{Global: true}
	var err2, err3 error
	g.Shared, err2 = yesOrNo(a, AnnotationShared, true)
	g.Clusters, err3 = clusters(a)
	return g, errors.Join(err1, err2, err3)
}

// annotation returns the value of an annotation and the spelling that it was
// found under. Ours comes first.
func annotation(a map[string]string, name string) (value, spelling string) {
	for _, s := range []string{name, ciliumPrefix + strings.TrimPrefix(name, ourPrefix)} {
		if v, ok := a[s]; ok && (s == name || name != AnnotationClusters) {
			return v, s
		}
	}
	return "", name
}

func yesOrNo(a map[string]string, name string, standard bool) (bool, error) {
	value, spelling := annotation(a, name)
	switch strings.ToLower(value) {
	case "":
		return standard, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return standard, notAllowed(spelling, value, `"true" or "false"`)
}

// notAllowed is the error of every annotation.
func notAllowed(spelling, value, allowed string) error {
	return fmt.Errorf("annotation %s: value %q is not allowed; write %s", spelling, wire.Shown(value, 80), allowed)
}

// clusters returns the policy that the annotations ask for, in text form.
func clusters(a map[string]string) (string, error) {
	affinity, spelling := annotation(a, AnnotationAffinity)
	list, ok := a[AnnotationClusters]
	if ok {
		p, err := ParsePolicy(list)
		if err == nil && affinity != "" {
			err = fmt.Errorf("annotation %s: value %q has no effect beside %s; remove one of the two", spelling, wire.Shown(affinity, 80), AnnotationClusters)
		}
		return p.String(), err
	}
	switch strings.ToLower(affinity) {
	case "", "none":
		return "", nil
	case "local":
		return Local + ", " + Others, nil
	case "remote":
		return Others + ", " + Local, nil
	}
	return "", notAllowed(spelling, affinity, `"none", "local" or "remote"`)
}

// The names in policies that are no clusters'.
const (
	Local  = "local" // our own cluster
	Others = "*"     // every cluster that is not named
)

// maxWeight is far from where sums of weights could overflow.
const maxWeight = 1000

// Policy says in which order, and with which weights, a Service uses clusters.
// A group that is not enough is joined by the next one. The zero Policy is one
// group of all.
type Policy struct{ groups []group }

// group are clusters that are used together. Without weights all their backends
// are alike.
type group struct {
	weighted bool
	members  []member
}

type member struct {
	name   string // of a cluster, Local or Others
	weight uint32
}

// ParsePolicy reads a list like "local, east=80, west=20". Clusters that have
// weights and follow each other are one group, others a group each; clusters that
// are not in the list are not used. A weight of "*" is that of each of the others.
func ParsePolicy(list string) (Policy, error) {
	var p Policy
	seen := map[string]bool{}
	for text := range strings.SplitSeq(list, ",") {
		m, weighted, err := parseMember(strings.TrimSpace(text))
		if err == nil && seen[m.name] {
			err = fmt.Errorf("it names %s twice", m.name)
		}
		if err != nil {
			return Policy{}, fmt.Errorf("%w (%w)", notAllowed(AnnotationClusters, list,
				fmt.Sprintf(`names of clusters, "local" or "*" for all others, separated by commas, each with a weight of 0 to %d if need be, for example "local, east=80, west=20"`, maxWeight)), err)
		}
		seen[m.name] = true
		if n := len(p.groups); weighted && n > 0 && p.groups[n-1].weighted {
			p.groups[n-1].members = append(p.groups[n-1].members, m)
			continue
		}
		p.groups = append(p.groups, group{weighted, []member{m}})
	}
	return p, nil
}

func parseMember(text string) (m member, weighted bool, err error) {
	name, weight, weighted := strings.Cut(text, "=")
	m = member{strings.TrimSpace(name), 1}
	if m.name != Others && !wire.ValidClusterName(m.name) {
		return m, false, fmt.Errorf("%q is not the name of a cluster", wire.Shown(m.name, 80))
	}
	if !weighted {
		return m, false, nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(weight), 10, 32)
	if err != nil || n > maxWeight {
		return m, false, fmt.Errorf("%q is not a weight", wire.Shown(weight, 80))
	}
	m.weight = uint32(n)
	return m, true, nil
}

// String is the list that ParsePolicy reads.
func (p Policy) String() string {
	var out []string
	for _, g := range p.groups {
		for _, m := range g.members {
			text := m.name
			if g.weighted {
				text += "=" + strconv.Itoa(int(m.weight))
			}
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

// find returns the group of a cluster and what it is there; -1 if it is in none.
func (p Policy) find(own, cluster string) (int, member) {
	if len(p.groups) == 0 {
		return 0, member{Others, 1}
	}
	name := cluster
	if cluster == own {
		name = Local
	}
	at, found := -1, member{}
	for i, g := range p.groups {
		for _, m := range g.members {
			switch {
			case m.name == name || m.name == cluster:
				return i, m
			case m.name == Others && cluster != own && at < 0:
				at, found = i, m
			}
		}
	}
	return at, found
}

// weighted tells whether the clusters of a group have weights.
func (p Policy) weighted(group int) bool { return group < len(p.groups) && p.groups[group].weighted }

// size is the number of groups.
func (p Policy) size() int { return max(1, len(p.groups)) }

// Names are the clusters that the list names, sorted.
func (p Policy) Names() []string {
	var out []string
	for _, g := range p.groups {
		for _, m := range g.members {
			if m.name != Local && m.name != Others {
				out = append(out, m.name)
			}
		}
	}
	slices.Sort(out)
	return out
}

package mcs

import (
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Explanation is what became of the exports of one name, for people.
type Explanation struct {
	Key      model.ServiceKey
	Imported bool // there is a ServiceImport in our cluster
	Sources  []Source
}

// Source is one cluster's export.
type Source struct {
	Cluster      string
	CreatedMilli uint64
	Rank         int    // by precedence, from 1; 0: it takes no part
	Refused      string // why it takes no part
	Freshness    Freshness
	Backends     int // that do not terminate
	Ready        int
	Slices       int // derived from its own in our cluster
}

// Explain explains the exports of one name, by the last plan; those of all names
// if it is empty. Both are sorted, sources by cluster.
func (p *Planner) Explain(k model.ServiceKey) []Explanation {
	keys := []model.ServiceKey{k}
	if k == (model.ServiceKey{}) {
		keys = slices.SortedFunc(maps.Keys(p.entries), func(a, b model.ServiceKey) int { return strings.Compare(a.String(), b.String()) })
	}
	var out []Explanation
	for _, k := range keys {
		e := p.entries[k]
		if e != nil && e.decision != nil && len(e.decision.claims)+len(e.decision.refused) > 0 {
			out = append(out, Explanation{k, e.imported != nil, p.sources(e)})
		}
	}
	return out
}

func (p *Planner) sources(e *entry) []Source {
	all := map[string]*Source{}
	for i, c := range e.decision.claims {
		all[c.cluster] = &Source{Cluster: c.cluster, CreatedMilli: c.CreatedMilli, Rank: i + 1, Freshness: p.freshness(c.cluster)}
	}
	for _, r := range e.decision.refused {
		all[r.cluster] = &Source{Cluster: r.cluster, Refused: r.why, Freshness: p.freshness(r.cluster)}
	}
	for from := range e.slices {
		s := all[from.Cluster]
		if s == nil {
			continue // it exports nothing
		}
		if _, derived := e.derived[from]; derived {
			s.Slices++
		}
		s.count(p.slices[from])
	}
	var out []Source
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, *all[name])
	}
	return out
}

// count adds the endpoints of a slice.
func (s *Source) count(row string) {
	slice, _ := wire.DecodeSlice([]byte(row)) // SetSlices has decoded it
	for _, x := range slice.Endpoints {
		if !x.Terminating {
			s.Backends++
		}
		if x.Ready {
			s.Ready++
		}
	}
}

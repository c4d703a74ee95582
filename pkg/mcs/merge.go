package mcs

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Merge knows what decides which clusters' backends a Service uses. It is for the
// nodes, which hold Services of our cluster and slices of all clusters. It is not
// safe for concurrent use.
type Merge struct {
	own     string
	fresh   map[string]Freshness
	global  map[model.ServiceKey]Policy
	text    map[model.ServiceKey]string
	sharing map[model.ExportKey]bool
}

// NewMerge returns the merge of a cluster, without any global Service.
func NewMerge(own string) *Merge {
	return &Merge{own: own, fresh: map[string]Freshness{}, global: map[model.ServiceKey]Policy{}, text: map[model.ServiceKey]string{}, sharing: map[model.ExportKey]bool{}}
}

// SetServices takes in what the annotations of our Services say and returns the
// Services that this changes something for.
func (m *Merge) SetServices(set map[model.ServiceKey]Global, del []model.ServiceKey) (dirty []model.ServiceKey) {
	for k, g := range set {
		if !g.Global {
			del = append(del, k)
			continue
		}
		if _, was := m.global[k]; was && m.text[k] == g.Clusters {
			continue
		}
		var p Policy
		if g.Clusters != "" {
			p, _ = ParsePolicy(g.Clusters) // ParseAnnotations wrote it
		}
		m.global[k], m.text[k] = p, g.Clusters
		dirty = append(dirty, k)
	}
	for _, k := range del {
		if _, was := m.global[k]; was {
			delete(m.global, k)
			delete(m.text, k)
			dirty = append(dirty, k)
		}
	}
	return dirty
}

// SetShared takes in which Services peers share and returns the Services of ours
// that this changes something for.
func (m *Merge) SetShared(set, del []model.ExportKey) (dirty []model.ServiceKey) {
	mark := func(k model.ExportKey) {
		if _, global := m.global[k.Service()]; global {
			dirty = append(dirty, k.Service())
		}
	}
	for _, k := range set {
		if !m.sharing[k] && k.Cluster != m.own {
			m.sharing[k] = true
			mark(k)
		}
	}
	for _, k := range del {
		if m.sharing[k] {
			delete(m.sharing, k)
			mark(k)
		}
	}
	return dirty
}

// SetFreshness says how fresh peers are and returns those for whom that is
// different: of these all Services are to be planned anew.
func (m *Merge) SetFreshness(fresh map[string]Freshness) (changed []string) {
	for name := range m.fresh {
		if fresh[name] != m.fresh[name] {
			changed = append(changed, name)
		}
	}
	for name, f := range fresh {
		if _, known := m.fresh[name]; !known && f != Fresh {
			changed = append(changed, name)
		}
	}
	m.fresh = maps.Clone(fresh)
	slices.Sort(changed)
	return changed
}

// Takes tells whether a slice that names a Service counts for ours of that name:
// it is our own, or the Service is global and the slice's cluster shares its.
func (m *Merge) Takes(k model.ServiceKey, slice model.SliceKey) bool {
	if slice.Cluster == m.own {
		return true
	}
	_, global := m.global[k]
	return global && m.sharing[model.ExportKey{Cluster: slice.Cluster, Namespace: k.Namespace, Name: k.Name}]
}

// ClusterOf is where the endpoints of a slice are. Derived ones are our own, and
// say it; what a peer's slice says of that counts for nothing.
func (m *Merge) ClusterOf(k model.SliceKey, s wire.Slice) string {
	if k.Cluster == m.own && s.Source != "" {
		return s.Source
	}
	return k.Cluster
}

// Choose is the function Choose for one of our Services.
func (m *Merge) Choose(k model.ServiceKey, list []Candidate) []Use {
	return Choose(m.global[k], m.own, func(cluster string) Freshness { return m.fresh[cluster] }, list)
}

// ClusterUse is how much of a cluster a Service uses.
type ClusterUse struct {
	Cluster string
	Total   int // backends that do not terminate
	Ready   int
	Used    int // backends that get new connections
	Share   float64
	Why     string // of the most backends that are used, or of the most others
}

// Summarize adds up by cluster what became of candidates.
func Summarize(list []Candidate, uses []Use) []ClusterUse {
	sums, whys, total := map[string]ClusterUse{}, map[string]map[Why]int{}, 0.0
	for i, x := range list {
		s, u := sums[x.Cluster], uses[i]
		s.Cluster = x.Cluster
		if !x.Terminating {
			s.Total++
		}
		if x.Ready {
			s.Ready++
		}
		if u.Weight > 0 {
			s.Used++
			s.Share += float64(u.Weight)
			total += float64(u.Weight)
		}
		sums[x.Cluster] = s
		if whys[x.Cluster] == nil {
			whys[x.Cluster] = map[Why]int{}
		}
		whys[x.Cluster][u.Why]++
	}
	out := slices.SortedFunc(maps.Values(sums), func(a, b ClusterUse) int { return strings.Compare(a.Cluster, b.Cluster) })
	for i := range out {
		if total > 0 {
			out[i].Share /= total
		}
		out[i].Why = most(whys[out[i].Cluster], out[i].Used > 0).String()
	}
	return out
}

// most is the reason of the most; of those that are used if used.
func most(whys map[Why]int, used bool) Why {
	list := slices.DeleteFunc(slices.Collect(maps.Keys(whys)), func(w Why) bool { return used != (w <= LastStale) })
	slices.SortFunc(list, func(a, b Why) int { return cmp.Or(cmp.Compare(whys[b], whys[a]), cmp.Compare(a, b)) })
	return list[0]
}

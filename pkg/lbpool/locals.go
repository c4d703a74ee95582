package lbpool

import (
	"maps"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Locals keeps the nodes that have ready endpoints, of the Services with
// addresses from us whose externalTrafficPolicy is Local. Of others it keeps
// nothing. It is not safe for concurrent use.
type Locals struct {
	wanted map[Key]bool
	rows   map[model.SliceKey]localSlice
}

type localSlice struct {
	service Key
	nodes   string // sorted, separated by spaces
}

// NewLocals returns one that knows no rows.
func NewLocals() *Locals {
	return &Locals{wanted: map[Key]bool{}, rows: map[model.SliceKey]localSlice{}}
}

// SetServices says which Services there are. If one is new, all slices are asked for.
func (l *Locals) SetServices(services map[Key]Service, all func() map[model.SliceKey]string) {
	before := l.wanted
	l.wanted = map[Key]bool{}
	more := false
	for key, s := range services {
		if s.Local && s.Ours != "" {
			l.wanted[key] = true
			more = more || !before[key]
		}
	}
	maps.DeleteFunc(l.rows, func(_ model.SliceKey, s localSlice) bool { return !l.wanted[s.service] })
	if more {
		l.Change(all(), nil)
	}
}

// Change takes in changed and deleted EndpointSlices, and tells whether that
// changed any answer.
func (l *Locals) Change(set map[model.SliceKey]string, del []model.SliceKey) (changed bool) {
	for _, k := range del {
		_, had := l.rows[k]
		changed = changed || had
		delete(l.rows, k)
	}
	if len(l.wanted) == 0 {
		return changed
	}
	for k, value := range set {
		next, old := l.read(k, value), l.rows[k]
		changed = changed || next != old
		if next == (localSlice{}) {
			delete(l.rows, k)
		} else {
			l.rows[k] = next
		}
	}
	return changed
}

// read is empty for slices of other Services.
func (l *Locals) read(k model.SliceKey, value string) localSlice {
	s, err := wire.DecodeSlice([]byte(value))
	key := Key{k.Namespace, s.Service}
	if err != nil || !l.wanted[key] {
		return localSlice{}
	}
	seen := map[string]bool{}
	for _, e := range s.Endpoints {
		if e.Ready && e.Node != "" {
			seen[e.Node] = true
		}
	}
	return localSlice{key, strings.Join(slices.Sorted(maps.Keys(seen)), " ")}
}

// Nodes are those with ready endpoints, by Service.
func (l *Locals) Nodes() map[Key]map[string]bool {
	out := map[Key]map[string]bool{}
	for _, s := range l.rows {
		if out[s.service] == nil {
			out[s.service] = map[string]bool{}
		}
		for n := range strings.FieldsSeq(s.nodes) {
			out[s.service][n] = true
		}
	}
	return out
}

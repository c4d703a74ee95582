package mcs

import (
	"maps"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Base is what configuration fixes.
type Base struct {
	Cluster  string
	Families []string       // that Services of our cluster can have; empty: both
	PodCIDRs []netip.Prefix // of our pods; empty: unknown
}

// Plan is what should be. Its maps are the planner's: the next call of Plan
// changes them.
type Plan struct {
	Imports  map[model.ServiceKey]Import
	Exports  map[model.ServiceKey]ExportStatus
	Services map[model.ServiceKey]DerivedService
	Slices   map[model.ServiceKey]DerivedSlice // by namespace and name
	Wire     map[string]string                 // rows that we publish, by the part of their keys behind wire.ExportPrefix
	Patch    Patch
}

// Patch is what a plan has other than the one before it.
type Patch struct {
	Imports  Changes[model.ServiceKey, Import]
	Exports  Changes[model.ServiceKey, ExportStatus]
	Services Changes[model.ServiceKey, DerivedService]
	Slices   Changes[model.ServiceKey, DerivedSlice]
	Wire     Changes[string, string]
}

// Planner keeps a Plan up to date with rows. What changes costs no more than the
// Service that it belongs to. It is not safe for concurrent use.
type Planner struct {
	base       Base
	now        uint64
	peers      map[string]Peer
	namespaces map[string]bool
	services   map[model.ServiceKey]Service
	exports    map[model.ServiceKey]Export
	slices     map[model.SliceKey]string
	addrs      map[model.ServiceKey]DerivedAddrs

	entries     map[model.ServiceKey]*entry
	serviceOf   map[model.SliceKey]model.ServiceKey
	due         map[model.ServiceKey]uint64
	dirty       map[model.ServiceKey]bool
	dirtySlices map[model.SliceKey]model.ServiceKey

	out output
}

// output are the rows of all targets.
type output struct {
	imports  rows[model.ServiceKey, Import]
	exports  rows[model.ServiceKey, ExportStatus]
	services rows[model.ServiceKey, DerivedService]
	slices   rows[model.ServiceKey, DerivedSlice]
	wire     rows[string, string]
}

// entry is all that goes by one name.
type entry struct {
	claims map[string]string // peers' exports, by cluster
	slices map[model.SliceKey]bool

	own      own
	decision *decision
	imported *imported // nil: the namespace is not there, or nobody exports it
	visible  bool      // some peer may read of it
	service  model.ServiceKey
	derived  map[model.SliceKey]model.ServiceKey
	tails    map[string]bool // of service and export
	lines    []status.Line
	left     map[model.SliceKey]netip.Addr // endpoints that are not exported
}

// NewPlanner returns a planner that knows no rows. It is now so many milliseconds
// since 1970.
func NewPlanner(b Base, now uint64) *Planner {
	return &Planner{
		base: b, now: now, peers: map[string]Peer{}, namespaces: map[string]bool{}, services: map[model.ServiceKey]Service{}, exports: map[model.ServiceKey]Export{},
		slices: map[model.SliceKey]string{}, addrs: map[model.ServiceKey]DerivedAddrs{},
		entries: map[model.ServiceKey]*entry{}, serviceOf: map[model.SliceKey]model.ServiceKey{}, due: map[model.ServiceKey]uint64{},
		dirty: map[model.ServiceKey]bool{}, dirtySlices: map[model.SliceKey]model.ServiceKey{},
		out: output{newRows[model.ServiceKey, Import](), newRows[model.ServiceKey, ExportStatus](), newRows[model.ServiceKey, DerivedService](),
			newRows[model.ServiceKey, DerivedSlice](), newRows[string, string]()},
	}
}

// Plan returns the plan of all rows so far.
func (p *Planner) Plan() *Plan {
	for k := range p.dirty {
		p.replan(k)
	}
	for s, k := range p.dirtySlices {
		if !p.dirty[k] {
			p.replanSlice(k, p.entries[k], s)
		}
	}
	for k := range p.dirty {
		if p.entries[k].empty() && p.services[k] == (Service{}) && p.exports[k] == (Export{}) {
			delete(p.entries, k)
		}
	}
	p.dirty, p.dirtySlices = map[model.ServiceKey]bool{}, map[model.SliceKey]model.ServiceKey{}
	o := &p.out
	return &Plan{o.imports.all, o.exports.all, o.services.all, o.slices.all, o.wire.all,
		Patch{o.imports.take(), o.exports.take(), o.services.take(), o.slices.take(), o.wire.take()}}
}

func (e *entry) empty() bool { return len(e.claims) == 0 && len(e.slices) == 0 }

// replan computes all rows of one name.
func (p *Planner) replan(k model.ServiceKey) {
	e := p.of(k)
	var s *Service
	var x *Export
	if row, ok := p.services[k]; ok {
		s = &row
	}
	if row, ok := p.exports[k]; ok {
		x = &row
	}
	e.own = ownOf(k, s, x)
	claims := e.claims
	if e.own.claim != "" {
		claims = maps.Clone(e.claims)
		claims[p.base.Cluster] = e.own.claim
	}
	e.decision = decide(k, claims, p.now)
	delete(p.due, k)
	if e.decision.due != 0 {
		p.due[k] = e.decision.due
	}
	p.replanImport(k, e)
	p.replanOwn(k, e)
	for slice := range e.slices {
		p.replanSlice(k, e, slice)
	}
	e.lines = p.linesOf(k, e)
}

// replanImport computes the import and the Service that gives it its address.
func (p *Planner) replanImport(k model.ServiceKey, e *entry) {
	old := e.service
	e.imported, e.service = nil, model.ServiceKey{}
	if p.namespaces[k.Namespace] && len(e.decision.claims) > 0 { // N11, N13
		x := importOf(k, e.decision, p.base.Families, func(s model.ServiceKey) string { return p.addrs[s].Addrs })
		e.imported, e.service = &x, x.service
	}
	if old != e.service && old != (model.ServiceKey{}) {
		p.out.services.drop(old)
	}
	if e.service != (model.ServiceKey{}) {
		p.out.services.put(e.service, e.imported.derived)
	}
	p.putImport(k, e)
}

// putImport sets the import's row, which tells whether there are slices.
func (p *Planner) putImport(k model.ServiceKey, e *entry) {
	if e.imported == nil {
		p.out.imports.drop(k)
		return
	}
	row := e.imported.row
	row.Slices = len(e.derived) > 0
	p.out.imports.put(k, row)
}

package dns

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// Tables are what a zone is made of. Their sources have to be expected before
// Run, so that a table that nobody has filled yet is known as such.
type Tables struct {
	Imports    *state.Table[model.ServiceKey, model.ServiceImport]
	Slices     *state.Table[model.ServiceKey, model.ImportSlice]
	Namespaces *state.Table[string, model.Namespace]
	Server     *state.Table[string, model.Addrs] // of the Service in front of us
}

// Index keeps a zone equal to tables.
type Index struct {
	tables Tables
	zone   *zone.Zone
	meter  *Meter
	own    []netip.Addr // our own addresses, where no Service is in front of us
	synced chan struct{}

	// of is the import that each slice is behind, slices are those of each import.
	of     map[model.ServiceKey]model.ServiceKey
	slices map[model.ServiceKey][]model.ServiceKey
}

// NewIndex returns an index that Run starts. The zone is said to be served at
// the Service's addresses, or at own ones where it has none.
func NewIndex(t Tables, z *zone.Zone, m *Meter, own []netip.Addr) *Index {
	return &Index{tables: t, zone: z, meter: m, own: own, synced: make(chan struct{}),
		of: map[model.ServiceKey]model.ServiceKey{}, slices: map[model.ServiceKey][]model.ServiceKey{}}
}

// Synced is closed once the zone holds all that there is.
func (x *Index) Synced() <-chan struct{} { return x.synced }

// Lagging are the tables that have not been read yet.
func (x *Index) Lagging() (out []string) {
	for _, t := range []struct {
		name   string
		synced bool
	}{{"serviceimports", x.tables.Imports.Synced()}, {"endpointslices", x.tables.Slices.Synced()}, {"namespaces", x.tables.Namespaces.Synced()}} {
		if !t.synced {
			out = append(out, t.name)
		}
	}
	return out
}

// Run takes changes in until ctx ends.
func (x *Index) Run(ctx context.Context) error {
	imports, sliced, namespaces := x.tables.Imports.Follow(), x.tables.Slices.Follow(), x.tables.Namespaces.Follow()
	server := x.tables.Server.Subscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-imports.C:
		case <-sliced.C:
		case <-namespaces.C:
		case <-server:
			x.serve()
		}
		x.step(imports, sliced, namespaces)
	}
}

// serve tells the zone where it is served.
func (x *Index) serve() {
	for _, a := range x.tables.Server.Rows() {
		if all := a.All(); len(all) > 0 {
			x.zone.SetServers(all)
			return
		}
	}
	x.zone.SetServers(x.own)
}

// step takes in what has changed since the last one.
func (x *Index) step(imports *state.Changes[model.ServiceKey, model.ServiceImport], sliced *state.Changes[model.ServiceKey, model.ImportSlice],
	namespaces *state.Changes[string, model.Namespace]) {
	spaces, gone, ok1 := namespaces.Take()
	set, del, ok2 := imports.Take()
	slicesSet, slicesDel, ok3 := sliced.Take()
	if len(spaces)+len(gone) > 0 {
		names := make([]string, 0, len(spaces))
		for n := range spaces {
			names = append(names, n)
		}
		x.zone.SetNamespaces(names, gone)
	}
	dirty := map[model.ServiceKey]struct{}{}
	for k := range set {
		dirty[k] = struct{}{}
	}
	for _, k := range del {
		dirty[k] = struct{}{}
	}
	for k, row := range slicesSet {
		x.move(k, model.ServiceKey{Namespace: k.Namespace, Name: row.Service}, dirty)
	}
	for _, k := range slicesDel {
		x.move(k, model.ServiceKey{}, dirty)
	}
	x.refresh(dirty)
	now := time.Now()
	if len(dirty)+len(spaces)+len(gone) > 0 {
		x.zone.SetSerial(uint32(now.Unix()))
	}
	select {
	case <-x.synced:
		x.observe(slicesSet, now)
	default:
		if ok1 && ok2 && ok3 {
			x.zone.SetSynced()
			close(x.synced)
		}
	}
}

// move notes behind which import a slice is now; the zero key stands for none.
func (x *Index) move(slice, to model.ServiceKey, dirty map[model.ServiceKey]struct{}) {
	from, known := x.of[slice]
	if known {
		dirty[from] = struct{}{}
	}
	if to != (model.ServiceKey{}) {
		dirty[to] = struct{}{}
	}
	if known && from == to {
		return
	}
	if known {
		left := slices.DeleteFunc(x.slices[from], func(k model.ServiceKey) bool { return k == slice })
		if x.slices[from] = left; len(left) == 0 {
			delete(x.slices, from)
		}
		delete(x.of, slice)
	}
	if to != (model.ServiceKey{}) {
		x.of[slice] = to
		x.slices[to] = append(x.slices[to], slice)
	}
}

// refresh computes imports anew, from the tables as they are.
func (x *Index) refresh(dirty map[model.ServiceKey]struct{}) {
	changes := make([]zone.Change, 0, len(dirty))
	for k := range dirty {
		c := zone.Change{Key: k}
		imp, ok := x.tables.Imports.Get(k)
		c.Import, c.Gone = imp, !ok
		for _, s := range x.slices[k] {
			if row, ok := x.tables.Slices.Get(s); ok && row.Service == k.Name {
				c.Slices = append(c.Slices, row)
			}
		}
		changes = append(changes, c)
	}
	x.zone.SetServices(changes)
}

// observe measures how long changes took to get here, for headless services,
// whose endpoints are DNS's own.
func (x *Index) observe(changed map[model.ServiceKey]model.ImportSlice, now time.Time) {
	for k, row := range changed {
		imp, ok := x.tables.Imports.Get(model.ServiceKey{Namespace: k.Namespace, Name: row.Service})
		if ok && imp.Headless && row.ChangedUnixMilli > 0 {
			x.meter.programmed.Observe(now.Sub(time.UnixMilli(row.ChangedUnixMilli)).Seconds())
		}
	}
}

package mcs

import (
	"maps"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func (p *Planner) of(k model.ServiceKey) *entry {
	e := p.entries[k]
	if e == nil {
		e = &entry{claims: map[string]string{}, slices: map[model.SliceKey]bool{},
			derived: map[model.SliceKey]model.ServiceKey{}, tails: map[string]bool{}, left: map[model.SliceKey]netip.Addr{}}
		p.entries[k] = e
	}
	return e
}

func (p *Planner) touch(k model.ServiceKey) *entry {
	p.dirty[k] = true
	return p.of(k)
}

func (p *Planner) touchAll(which func(model.ServiceKey, *entry) bool) {
	for k, e := range p.entries {
		if which(k, e) {
			p.dirty[k] = true
		}
	}
}

// SetNow says what time it is, in milliseconds since 1970.
func (p *Planner) SetNow(milli uint64) {
	p.now = milli
	for k, due := range p.due {
		if due <= milli {
			p.dirty[k] = true
		}
	}
}

// Due is when to say the time again at the latest; 0: that does not matter.
func (p *Planner) Due() (milli uint64) {
	for _, due := range p.due {
		if milli == 0 || due < milli {
			milli = due
		}
	}
	return milli
}

// SetPeers says who the peers are. Of those that are not there the rows have to
// be taken back as well.
func (p *Planner) SetPeers(peers map[string]Peer) {
	old := p.peers
	if maps.Equal(old, peers) {
		return
	}
	p.peers = maps.Clone(peers)
	filters := func(m map[string]Peer) map[string]string {
		out := map[string]string{}
		for name, x := range m {
			out[name] = x.Export
		}
		return out
	}
	refiltered := !maps.Equal(filters(old), filters(peers))
	renewed := func(cluster string) bool {
		return (old[cluster].Freshness == Expired) != (peers[cluster].Freshness == Expired)
	}
	p.touchAll(func(k model.ServiceKey, e *entry) bool {
		if refiltered && (e.own != (own{}) || p.services[k].Global.Clusters != "") {
			return true
		}
		for cluster := range e.claims {
			if renewed(cluster) {
				return true
			}
		}
		return false
	})
}

// SetNamespaces takes in namespaces of our cluster that are new and that are gone.
func (p *Planner) SetNamespaces(set, del []string) {
	changed := map[string]bool{}
	for i, list := range [][]string{set, del} {
		for _, n := range list {
			if p.namespaces[n] != (i == 0) {
				p.namespaces[n], changed[n] = i == 0, true
			}
		}
	}
	for _, n := range del {
		delete(p.namespaces, n)
	}
	if len(changed) > 0 {
		p.touchAll(func(k model.ServiceKey, _ *entry) bool { return changed[k.Namespace] })
	}
}

// SetServices takes in changed and deleted Services of our cluster.
func (p *Planner) SetServices(set map[model.ServiceKey]Service, del []model.ServiceKey) {
	setOwn(p, p.services, set, del)
}

// SetExports takes in changed and deleted ServiceExports of our cluster.
func (p *Planner) SetExports(set map[model.ServiceKey]Export, del []model.ServiceKey) {
	setOwn(p, p.exports, set, del)
}

func setOwn[V comparable](p *Planner, into, set map[model.ServiceKey]V, del []model.ServiceKey) {
	for k, v := range set {
		if old, ok := into[k]; !ok || old != v {
			into[k] = v
			p.touch(k)
		}
	}
	for _, k := range del {
		if _, ok := into[k]; ok {
			delete(into, k)
			p.touch(k)
		}
	}
}

// SetAddrs takes in the addresses that derived Services have got, separated by spaces.
func (p *Planner) SetAddrs(set map[model.ServiceKey]DerivedAddrs, del []model.ServiceKey) {
	for k, v := range set {
		if p.addrs[k] != v {
			p.addrs[k] = v
			p.touch(model.ServiceKey{Namespace: k.Namespace, Name: v.Import})
		}
	}
	for _, k := range del {
		if old, ok := p.addrs[k]; ok {
			delete(p.addrs, k)
			p.touch(model.ServiceKey{Namespace: k.Namespace, Name: old.Import})
		}
	}
}

// DerivedAddrs are the addresses of a derived Service, and whose import it serves.
type DerivedAddrs struct{ Import, Addrs string }

// SetClaims takes in changed and deleted exports of peers: encodings of
// wire.Export.
func (p *Planner) SetClaims(set map[model.ExportKey]string, del []model.ExportKey) {
	for k, v := range set {
		if e := p.of(k.Service()); e.claims[k.Cluster] != v && k.Cluster != p.base.Cluster {
			e.claims[k.Cluster] = v
			p.touch(k.Service())
		}
	}
	for _, k := range del {
		if e := p.entries[k.Service()]; e != nil && k.Cluster != p.base.Cluster {
			delete(e.claims, k.Cluster)
			p.touch(k.Service())
		}
	}
}

// SetSlices takes in changed and deleted EndpointSlices, our own and those of peers.
func (p *Planner) SetSlices(set map[model.SliceKey]string, del []model.SliceKey) {
	for k, v := range set {
		if p.slices[k] == v {
			continue
		}
		s, err := wire.DecodeSlice([]byte(v))
		if err != nil || s.Service == "" {
			p.forget(k)
			continue
		}
		r := model.ServiceKey{Namespace: k.Namespace, Name: s.Service}
		if old, known := p.serviceOf[k]; known && old != r {
			p.forget(k)
		}
		p.slices[k], p.serviceOf[k], p.of(r).slices[k], p.dirtySlices[k] = v, r, true, r
	}
	for _, k := range del {
		p.forget(k)
	}
}

// forget takes a slice back. Its Service is planned anew.
func (p *Planner) forget(k model.SliceKey) {
	if r, known := p.serviceOf[k]; known {
		e := p.touch(r)
		delete(e.slices, k)
		p.dropSlice(e, k)
	}
	delete(p.slices, k)
	delete(p.serviceOf, k)
	delete(p.dirtySlices, k)
}

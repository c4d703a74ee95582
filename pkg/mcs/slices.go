package mcs

import (
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// replanSlice computes what becomes of one slice.
func (p *Planner) replanSlice(k model.ServiceKey, e *entry, from model.SliceKey) {
	s, err := wire.DecodeSlice([]byte(p.slices[from]))
	if err != nil || e.decision == nil {
		return // SetSlices decoded it; a new name is dirty
	}
	had := len(e.derived) > 0
	key, row, ok := model.ServiceKey{}, DerivedSlice{}, false
	ports, exported := e.decision.ports[from.Cluster]
	if exported && e.imported != nil && p.freshness(from.Cluster) != Expired { // N6, N11, N27
		key, row, ok = e.imported.slice(k.Name, from, p.base.Cluster, s, ports)
	}
	if old, was := e.derived[from]; was && (!ok || old != key) {
		p.out.slices.drop(old)
		delete(e.derived, from)
	}
	if ok {
		p.out.slices.put(key, row)
		e.derived[from] = key
	}
	if had != (len(e.derived) > 0) {
		p.putImport(k, e)
	}
	if from.Cluster == p.base.Cluster {
		p.publishSlice(k, e, from, s)
	}
}

// publishSlice sets what others are told of a slice of ours.
func (p *Planner) publishSlice(k model.ServiceKey, e *entry, from model.SliceKey, s wire.Slice) {
	tail := wire.SliceTail(from.Namespace, from.Name).String()
	before, was := e.left[from]
	delete(e.left, from)
	if !e.visible || e.own.claim == "" && e.own.shared == "" {
		p.out.wire.drop(tail)
	} else {
		value, left := sliceAbroad(s, p.base.PodCIDRs)
		p.out.wire.put(tail, value)
		if left.IsValid() {
			e.left[from] = left
		}
	}
	if now, is := e.left[from]; is != was || now != before {
		e.lines = p.linesOf(k, e)
	}
}

// dropSlice takes back the rows of a slice.
func (p *Planner) dropSlice(e *entry, from model.SliceKey) {
	if key, ok := e.derived[from]; ok {
		p.out.slices.drop(key)
		delete(e.derived, from)
	}
	delete(e.left, from)
	if from.Cluster == p.base.Cluster {
		p.out.wire.drop(wire.SliceTail(from.Namespace, from.Name).String())
	}
}

func (p *Planner) freshness(cluster string) Freshness {
	if cluster == p.base.Cluster {
		return Fresh
	}
	return p.peers[cluster].Freshness
}

package lbpool

import (
	"fmt"
	"slices"
	"strings"
)

// The reasons of a pool that does not give out all that it is asked for.
const (
	ReasonInvalid  = "Invalid"
	ReasonOverlaps = "Overlaps"
	ReasonOutside  = "OutsideExternalCIDRs"
	ReasonDisabled = "Disabled"
	ReasonFull     = "Full"
)

func (a *allocator) stateOf(name string, p Pool) PoolState {
	if st, closed := a.closed[name]; closed {
		return st
	}
	waiting := a.waiting[name]
	switch {
	case p.Disabled:
		return PoolState{Reason: ReasonDisabled, Message: "spec.disabled is set: no new address is given out of it"}
	case len(waiting) > 0:
		shown := slices.Compact(slices.Sorted(slices.Values(waiting)))
		return PoolState{Reason: ReasonFull, Message: fmt.Sprintf("no address is left for %d Services (%.200s): add addresses to the pool, or another pool", len(shown), strings.Join(shown, ", "))}
	}
	return PoolState{}
}

// judge finds the pools that must not give anything out.
func (a *allocator) judge() map[string]PoolState {
	out := map[string]PoolState{}
	for i, p := range a.pools {
		if p.Invalid != "" {
			out[p.name] = PoolState{Reason: ReasonInvalid, Message: p.Invalid + "; Services keep the addresses that they have"}
		} else if message := a.overlap(a.pools[:i], p); message != "" {
			out[p.name] = PoolState{Reason: ReasonOverlaps, Message: message}
		} else if r, bad := a.outside(p); bad {
			out[p.name] = PoolState{Reason: ReasonOutside, Message: fmt.Sprintf("%v is not in services.externalCIDRs, so no node would serve it: add it there, or use other addresses", r)}
		}
	}
	return out
}

func (a *allocator) overlap(older []*pool, p *pool) string {
	for _, r := range p.ranges {
		for _, o := range older {
			if i := slices.IndexFunc(o.ranges, r.overlaps); i >= 0 {
				return fmt.Sprintf("%v overlaps %v of the older pool %s: give every pool addresses of its own", r, o.ranges[i], o.name)
			}
		}
		for _, t := range a.in.Taken {
			if r.overlaps(rangeOf(t.Prefix)) {
				return fmt.Sprintf("%v overlaps %v, which is in use by %s: take that out of the pool", r, t.Prefix, t.What)
			}
		}
	}
	return ""
}

func (a *allocator) outside(p *pool) (Range, bool) {
	if len(a.in.External) == 0 {
		return Range{}, false
	}
	var allowed []Range
	for _, e := range a.in.External {
		allowed = append(allowed, rangeOf(e))
	}
	allowed = merge(allowed)
	for _, r := range p.ranges {
		if !slices.ContainsFunc(allowed, func(x Range) bool { return x.contains(r.First) && x.contains(r.Last) }) {
			return r, true
		}
	}
	return Range{}, false
}

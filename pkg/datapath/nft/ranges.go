package nft

import (
	"errors"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/plan"
)

// settleRanges fits changes of ranges to those that are there. A set of ranges
// holds none that overlap, so a new one takes the place of those that it meets,
// even while the loop keeps what may be an orphan: it may be the same range,
// wider or narrower, from before the agent started. What was displaced so is
// not deleted again later.
func (t *Target) settleRanges(changes []change) ([]change, error) {
	touched := map[plan.Set]bool{}
	for _, c := range changes {
		if l, known := layoutOf(c.key.Set); known && l.shape == ranges {
			touched[c.key.Set] = true
		}
	}
	if len(touched) == 0 {
		return changes, nil
	}
	present, err := t.readRanges(touched)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	goes := map[plan.FilterKey]bool{}
	changes = slices.DeleteFunc(changes, func(c change) bool {
		if !c.del || !touched[c.key.Set] {
			return false
		}
		goes[c.key] = true
		return !slices.Contains(present, c.key)
	})
	for _, p := range present {
		if !goes[p] && slices.ContainsFunc(changes, func(c change) bool { return !c.del && displaces(c.key, p) }) {
			changes = append(changes, change{key: p, del: true})
		}
	}
	return changes, nil
}

// readRanges returns what is in sets of ranges. A set of another shape is about
// to be replaced by an empty one.
func (t *Target) readRanges(names map[plan.Set]bool) ([]plan.FilterKey, error) {
	sets, err := readSets(t.reader, inetTable)
	if err != nil {
		return nil, err
	}
	var out []plan.FilterKey
	for _, s := range sets {
		if !names[plan.Set(s.name)] || !sameShape(s, allSets()) {
			continue
		}
		elements, err := readElements(t.reader, inetTable, s.name)
		if err != nil {
			return nil, err
		}
		out = append(out, decode(plan.Set(s.name), elements)...)
	}
	return out, nil
}

// displaces tells whether range old can't stay beside range k.
func displaces(k, old plan.FilterKey) bool {
	return k.Set == old.Set && k != old && !k.Range.To.Less(old.Range.From) && !old.Range.To.Less(k.Range.From)
}

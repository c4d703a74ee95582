package nft

import (
	"context"
	"errors"
	"slices"

	"github.com/google/nftables"

	"github.com/clustermesh/clustermesh/pkg/plan"
)

// chunk is how many elements go into one message: its list has to stay under
// 64 KiB, a transaction may have any number of messages.
const chunk = 250

// change is one row to set or delete.
type change struct {
	key plan.FilterKey
	row plan.FilterRow
	del bool
}

// Apply implements reconcile.Target. All of it is one transaction, so nothing
// is ever half there. If the kernel refuses it, elements are tried in halves
// until only the bad ones are left out.
func (t *Target) Apply(_ context.Context, set map[plan.FilterKey]plan.FilterRow, del []plan.FilterKey) map[plan.FilterKey]error {
	changes := make([]change, 0, len(set)+len(del))
	for k, v := range set {
		changes = append(changes, change{key: k, row: v})
	}
	for _, k := range del {
		changes = append(changes, change{key: k, del: true})
	}
	failed := map[plan.FilterKey]error{}
	err := t.open()
	if err == nil {
		changes, err = t.settleRanges(changes)
	}
	if err != nil {
		return all(err, set, del)
	}
	// The rules first, then set by set: halves then seldom part what has to
	// happen together.
	slices.SortFunc(changes, func(a, b change) int { return compareKeys(a.key, b.key) })
	t.try(changes, failed)
	return failed
}

// all says that nothing could be done.
func all(err error, set map[plan.FilterKey]plan.FilterRow, del []plan.FilterKey) map[plan.FilterKey]error {
	failed := make(map[plan.FilterKey]error, len(set)+len(del))
	for k := range set {
		failed[k] = err
	}
	for _, k := range del {
		failed[k] = err
	}
	return failed
}

func compareKeys(a, b plan.FilterKey) int {
	switch {
	case a.Set < b.Set:
		return -1
	case a.Set > b.Set:
		return 1
	}
	return a.Range.From.Compare(b.Range.From)
}

func (t *Target) try(changes []change, failed map[plan.FilterKey]error) {
	if len(changes) == 0 {
		return // all of it was so already
	}
	err := t.commit(changes)
	if err == nil {
		return
	}
	if len(changes) == 1 {
		failed[changes[0].key] = err
		return
	}
	if changes[0].key.Set == plan.RuleSet { // they come first, and matter more than any element
		t.try(changes[:1], failed)
		t.try(changes[1:], failed)
		return
	}
	t.try(changes[:len(changes)/2], failed)
	t.try(changes[len(changes)/2:], failed)
}

// commit makes changes in one transaction. Deletions come first: ranges that
// are joined or split would overlap otherwise, and no packet sees in between.
func (t *Target) commit(changes []change) error {
	if err := t.open(); err != nil {
		return err
	}
	remove, add := map[plan.Set][]nftables.SetElement{}, map[plan.Set][]nftables.SetElement{}
	for _, c := range changes {
		switch {
		case c.key.Set == plan.RuleSet && c.del:
			return t.deleteTables(skeleton(plan.Rules{})) // and all elements with them
		case c.key.Set == plan.RuleSet:
			if err := t.replaceTables(skeleton(c.row.Rules)); err != nil {
				return errors.Join(err, t.closeWriter())
			}
		case c.del:
			remove[c.key.Set] = append(remove[c.key.Set], encode(c.key)...)
		default:
			add[c.key.Set] = append(add[c.key.Set], encode(c.key)...)
		}
	}
	for set, elements := range remove {
		for part := range slices.Chunk(elements, chunk) {
			if err := t.writer.SetDeleteElements(newSet(set), part); err != nil {
				return errors.Join(err, t.closeWriter())
			}
		}
	}
	for set, elements := range add {
		for part := range slices.Chunk(elements, chunk) {
			if err := t.writer.SetAddElements(newSet(set), part); err != nil {
				return errors.Join(err, t.closeWriter())
			}
		}
	}
	return t.flush("change")
}

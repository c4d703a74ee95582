package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

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
	if rules := slices.ContainsFunc(changes, func(c change) bool { return c.key.Set == plan.RuleSet }); rules || len(changes) == 1 {
		for _, c := range changes {
			failed[c.key] = err
		}
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
			return t.deleteTables() // and all elements with them
		case c.key.Set == plan.RuleSet:
			if err := t.replaceRules(c.row.Rules); err != nil {
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

// flush sends the transaction. The kernel answers for every message of a failed
// one; the first answer says enough. More may be left in the socket.
func (t *Target) flush(verb string) error {
	err := t.writer.Flush()
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return errors.Join(fmt.Errorf("%s nft table %s: %w", verb, tableName, err), t.closeWriter())
}

// deleteTables deletes both tables. It adds them first, so that it cannot fail
// because they are gone.
func (t *Target) deleteTables() error {
	for _, x := range skeleton(plan.Rules{}) {
		table := &nftables.Table{Family: x.family, Name: x.name}
		t.writer.AddTable(table)
		t.writer.DelTable(table)
	}
	return t.flush("delete")
}

// replaceRules queues what turns whatever is there into the skeleton. Sets that
// have the right shape are kept with their elements.
func (t *Target) replaceRules(r plan.Rules) error {
	for _, x := range skeleton(r) {
		at := &nftables.Table{Family: x.family, Name: x.name}
		t.writer.AddTable(at)
		kept, err := t.clear(at, x)
		if err != nil {
			return err
		}
		for _, c := range x.counters {
			t.writer.AddObj(&nftables.CounterObj{Table: at, Name: c})
		}
		for _, s := range x.sets {
			if kept[s.Name] {
				continue
			}
			if err := t.writer.AddSet(s, nil); err != nil {
				return fmt.Errorf("add nft set %s: %w", s.Name, err)
			}
		}
		if err := t.addChains(at, x); err != nil {
			return err
		}
	}
	return nil
}

// clear queues the removal of all rules, and of the chains and sets that are
// not as they should be. It returns the sets that stay.
func (t *Target) clear(at *nftables.Table, want table) (kept map[string]bool, err error) {
	chains, err := readChains(t.reader, at.Family)
	if err != nil {
		return nil, err
	}
	for _, x := range chains {
		t.writer.FlushChain(&nftables.Chain{Table: at, Name: x.name})
	}
	for _, x := range chains {
		if !slices.ContainsFunc(want.chains, func(c chain) bool { return infoOf(c) == x }) {
			t.writer.DelChain(&nftables.Chain{Table: at, Name: x.name})
		}
	}
	sets, err := readSets(t.reader, at.Family)
	if err != nil {
		return nil, err
	}
	kept = map[string]bool{}
	for _, s := range sets {
		switch {
		case s.flags&unix.NFT_SET_ANONYMOUS != 0: // goes with its rule
		case sameShape(s):
			kept[s.name] = true
		default:
			t.writer.DelSet(&nftables.Set{Table: at, Name: s.name})
		}
	}
	return kept, nil
}

// addChains queues all chains, then their rules, which may jump to any chain.
func (t *Target) addChains(at *nftables.Table, x table) error {
	for _, c := range x.chains {
		n := &nftables.Chain{Table: at, Name: c.name}
		if c.kind != "" {
			accept := nftables.ChainPolicyAccept
			n.Type, n.Hooknum, n.Priority, n.Policy = c.kind, &c.hook, &c.priority, &accept
		}
		t.writer.AddChain(n)
	}
	for _, c := range x.chains {
		for _, r := range c.rules {
			comment, err := mark(x.family, r)
			if err != nil {
				return err
			}
			t.writer.AddRule(&nftables.Rule{Table: at, Chain: &nftables.Chain{Table: at, Name: c.name}, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
		}
	}
	return nil
}

package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// flush sends the transaction. The kernel answers for every message of a failed
// one; the first answer says enough. More may be left in the socket.
func (t *conn) flush(verb string) error {
	err := t.writer.Flush()
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return errors.Join(fmt.Errorf("%s nft table %s: %w", verb, t.name, err), t.closeWriter())
}

// deleteTables deletes tables. It adds them first, so that it cannot fail
// because they are gone.
func (t *conn) deleteTables(tables []table) error {
	for _, x := range tables {
		table := &nftables.Table{Family: x.family, Name: x.name}
		t.writer.AddTable(table)
		t.writer.DelTable(table)
	}
	return t.flush("delete")
}

// replaceTables queues what turns whatever is there into tables. Sets that have
// the right shape are kept with their elements.
func (t *conn) replaceTables(tables []table) error {
	for _, x := range tables {
		at := &nftables.Table{Family: x.family, Name: x.name}
		t.writer.AddTable(at)
		kept, err := t.clear(at, x)
		if err != nil {
			return err
		}
		if err := t.fill(at, x, kept); err != nil {
			return err
		}
	}
	return nil
}

// rebuildTables queues the removal of tables, elements and all, and new ones.
func (t *conn) rebuildTables(tables []table) error {
	for _, x := range tables {
		at := &nftables.Table{Family: x.family, Name: x.name}
		t.writer.AddTable(at) // so that the removal can't fail
		t.writer.DelTable(at)
		t.writer.AddTable(at)
		if err := t.fill(at, x, nil); err != nil {
			return err
		}
	}
	return nil
}

// fill queues what is in a table, apart from sets that are kept.
func (t *conn) fill(at *nftables.Table, x table, kept map[string]bool) error {
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
	return t.addChains(at, x)
}

// clear queues the removal of all rules, and of the chains and sets that are
// not as they should be. It returns the sets that stay.
func (t *conn) clear(at *nftables.Table, want table) (kept map[string]bool, err error) {
	chains, err := readChains(t.reader, want.id())
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
	sets, err := readSets(t.reader, want.id())
	if err != nil {
		return nil, err
	}
	kept = map[string]bool{}
	for _, s := range sets {
		switch {
		case s.flags&unix.NFT_SET_ANONYMOUS != 0: // goes with its rule
		case sameShape(s, want.sets):
			kept[s.name] = true
		default:
			t.writer.DelSet(&nftables.Set{Table: at, Name: s.name})
		}
	}
	return kept, nil
}

// addChains queues all chains, then their rules, which may jump to any chain.
func (t *conn) addChains(at *nftables.Table, x table) error {
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

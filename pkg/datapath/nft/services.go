package nft

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// Services is the target for the table `inet clustermesh-services`: where new
// connections to Services go. Each front has one element in a verdict map, which
// leads to the chain of its number of slots, and one element for each slot.
// Chains and rules are always the same, so that a change is a few elements.
type Services struct {
	conn
	vips []netip.Prefix // of which addresses that are no front are refused

	// What the kernel holds, as of List and of what was applied since. The zero
	// key stands for the rules.
	held    map[service.FrontKey]service.Front
	stays   []stay // chains of clients that stay with a backend
	rebuild bool   // what is there does not fit together: begin anew
}

const servicesName = "clustermesh-services"

var servicesTable = tableID{nftables.TableFamilyINet, servicesName}

// NewServices returns the target. vips are the prefixes of virtual addresses.
func NewServices(space nl.Space, vips []netip.Prefix) *Services {
	return &Services{conn: conn{space: space, name: servicesName}, vips: vips, held: map[service.FrontKey]service.Front{}}
}

func (t *Services) tables(stays []stay) []table { return []table{servicesSkeleton(t.vips, stays)} }

// Counters returns what has been dropped, by reason (drop_…), and AffinityFull.
func (t *Services) Counters(context.Context) (map[string]Counter, error) {
	return t.counters(t.tables(nil))
}

// List implements reconcile.Target. If elements do not fit together, somebody
// else has changed them: then nothing counts as held, and all is put in anew, in
// one transaction.
func (t *Services) List(context.Context) (map[service.FrontKey]service.Front, error) {
	t.held, t.stays, t.rebuild = map[service.FrontKey]service.Front{}, nil, true
	if err := t.open(); err != nil {
		return nil, err
	}
	fronts, err := t.list()
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if fronts != nil {
		t.held, t.rebuild = fronts, false
	}
	return maps.Clone(t.held), nil
}

// list returns nil if what is there can't be made sense of.
func (t *Services) list() (map[service.FrontKey]service.Front, error) {
	chains, err := readChains(t.reader, servicesTable)
	if err != nil {
		return nil, err
	}
	t.stays = staysOf(chains)
	sets, err := readSets(t.reader, servicesTable)
	if err != nil {
		return nil, err
	}
	k := newKernelFronts()
	for _, s := range sets {
		if !sameShape(s, serviceSets()) {
			return nil, nil
		}
		if s.name[:len(s.name)-1] == setStay {
			continue // what clients made, and may be many
		}
		elements, err := readElements(t.reader, servicesTable, s.name)
		if err != nil {
			return nil, err
		}
		k.take(s.name, elements)
	}
	fronts, ok := k.fronts()
	if !ok {
		return nil, nil
	}
	whole, err := intact(t.reader, t.tables(t.stays))
	if whole {
		fronts[service.FrontKey{}] = service.Front{}
	}
	return fronts, err
}

// Apply implements reconcile.Target: one transaction, or if the kernel refuses
// it, halves until only the bad rows are left out.
func (t *Services) Apply(_ context.Context, set map[service.FrontKey]service.Front, del []service.FrontKey) map[service.FrontKey]error {
	changes := make([]frontChange, 0, len(set)+len(del))
	for k, f := range set {
		changes = append(changes, frontChange{key: k, front: f})
	}
	for _, k := range del {
		changes = append(changes, frontChange{key: k, del: true})
	}
	slices.SortFunc(changes, compareChanges)
	failed := map[service.FrontKey]error{}
	t.try(changes, failed)
	if err := t.forget(changes); err != nil {
		for _, c := range changes { // tried again with the next pass, for all that it may concern
			if c.front.AffinitySeconds > 0 {
				failed[c.key] = err
			}
		}
	}
	return failed
}

// frontChange is one row to set or delete.
type frontChange struct {
	key   service.FrontKey
	front service.Front
	del   bool
}

func (t *Services) try(changes []frontChange, failed map[service.FrontKey]error) {
	if len(changes) == 0 {
		return
	}
	err := t.commit(changes)
	switch {
	case err == nil:
	case len(changes) == 1:
		failed[changes[0].key] = err
	default:
		t.try(changes[:len(changes)/2], failed)
		t.try(changes[len(changes)/2:], failed)
	}
}

func (t *Services) remember(changes []frontChange) {
	for _, c := range changes {
		if c.del {
			delete(t.held, c.key)
		} else {
			t.held[c.key] = c.front
		}
	}
}

// commit changes elements in one transaction: no packet sees a front without
// its slots. An element's data can't be changed, so it is taken out and put in.
func (t *Services) commit(changes []frontChange) error {
	if err := t.open(); err != nil {
		return err
	}
	if rules := changes[0]; rules.key == (service.FrontKey{}) && rules.del {
		t.held, t.stays = map[service.FrontKey]service.Front{}, nil
		return t.deleteTables(t.tables(nil)) // and all elements with it
	}
	before := t.held
	if t.rebuild { // with all that is there: what is refused must not take it along
		changes, t.held = t.withHeld(changes), map[service.FrontKey]service.Front{}
	}
	stays, err := t.rules(changes)
	if err == nil {
		err = t.elements(changes)
	}
	if err != nil {
		t.held = before
		return errors.Join(err, t.closeWriter())
	}
	if err := t.flush("change"); err != nil {
		t.held = before
		t.rebuild = t.rebuild || !slices.Equal(stays, t.stays) || changes[0].key == (service.FrontKey{})
		return err
	}
	t.stays, t.rebuild = stays, false
	t.remember(changes)
	return nil
}

// withHeld adds what is held, as it is, to changes.
func (t *Services) withHeld(changes []frontChange) []frontChange {
	rest := maps.Clone(t.held)
	for _, c := range changes {
		delete(rest, c.key)
	}
	all := slices.Clone(changes) // the caller goes on to halves of it
	for k, f := range rest {
		all = append(all, frontChange{key: k, front: f})
	}
	slices.SortFunc(all, compareChanges)
	return all
}

// compareChanges puts the rules first.
func compareChanges(a, b frontChange) int { return a.key.Addr.Compare(b.key.Addr) }

// rules queues the rules where they are asked for, or have to be others: chains
// for clients that stay come with the first front that needs them; those that
// none needs any more go with the next that come. It returns those that there are
// then.
func (t *Services) rules(changes []frontChange) ([]stay, error) {
	stays, all := slices.Clone(t.stays), changes[0].key == (service.FrontKey{})
	for _, c := range changes {
		if s, ok := stayOf(c.key, c.front); ok && !c.del && !slices.Contains(stays, s) {
			stays, all = append(stays, s), true
		}
	}
	switch {
	case t.rebuild:
		stays = t.needed(changes)
		return stays, t.rebuildTables(t.tables(stays))
	case all:
		stays = t.needed(changes)
		return stays, t.replaceTables(t.tables(stays))
	}
	return stays, nil
}

// needed are the chains for clients that stay which changes need, and fronts as
// they are before: their elements go after the rules.
func (t *Services) needed(changes []frontChange) []stay {
	used := map[stay]bool{}
	for k, f := range t.held {
		if s, ok := stayOf(k, f); ok {
			used[s] = true
		}
	}
	for _, c := range changes {
		if s, ok := stayOf(c.key, c.front); ok && !c.del {
			used[s] = true
		}
	}
	return slices.SortedFunc(maps.Keys(used), compareStays)
}

// elements queues the elements of fronts.
func (t *Services) elements(changes []frontChange) error {
	d := newDiff()
	for _, c := range changes {
		if c.key != (service.FrontKey{}) {
			old, had := t.held[c.key]
			d.front(c, old, had)
		}
	}
	for _, s := range serviceSets() {
		for part := range slices.Chunk(d.del[s.Name], chunk) {
			if err := t.writer.SetDeleteElements(s, part); err != nil {
				return err
			}
		}
	}
	for _, s := range serviceSets() {
		for part := range slices.Chunk(d.add[s.Name], chunk) {
			if err := t.writer.SetAddElements(s, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget makes clients choose anew whose backend is none of the front's any
// more.
func (t *Services) forget(changes []frontChange) error {
	changed := map[service.FrontKey]map[string]bool{} // by front: backends
	for _, c := range changes {
		if c.front.AffinitySeconds == 0 || c.del {
			continue
		}
		six := c.key.Addr.Is6()
		backends := map[string]bool{}
		for i := range c.front.Slots.Len(six) {
			backends[c.front.Slots.At(i, six)] = true
		}
		inside := c.key
		inside.Outside = false // clients of both share a set
		if changed[inside] == nil {
			changed[inside] = backends
		} else {
			maps.Copy(changed[inside], backends)
		}
	}
	for _, f := range families {
		for k := range changed {
			if k.Addr.Is6() != f.six {
				continue
			}
			if err := t.forgetFamily(f, changed); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

func (t *Services) forgetFamily(f ip, changed map[service.FrontKey]map[string]bool) error {
	if err := t.open(); err != nil {
		return err
	}
	elements, err := readElements(t.reader, servicesTable, f.set(setStay))
	if err != nil {
		return err
	}
	n := f.addrBytes()
	var gone []nftables.SetElement
	for _, e := range elements {
		if len(e.key) < n || len(e.data) < n+2 {
			continue
		}
		front, ok := parseFrontKey(e.key[n:], f, false)
		if backends := changed[front]; ok && backends != nil && !backends[string(e.data[:n+2])] {
			gone = append(gone, nftables.SetElement{Key: e.key})
		}
	}
	return t.deleteClients(f.set(setStay), gone)
}

// deleteClients deletes elements of which some may expire meanwhile: a
// transaction that fails for that is halved.
func (t *Services) deleteClients(name string, gone []nftables.SetElement) error {
	if len(gone) == 0 {
		return nil
	}
	if err := t.open(); err != nil { // again, after an error
		return err
	}
	set := &nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: servicesName}, Name: name}
	for part := range slices.Chunk(gone, chunk) {
		if err := t.writer.SetDeleteElements(set, part); err != nil {
			return errors.Join(err, t.closeWriter())
		}
	}
	err := t.flush("change")
	switch half := len(gone) / 2; {
	case !errors.Is(err, unix.ENOENT):
		return err
	case half == 0:
		return nil
	default:
		return errors.Join(t.deleteClients(name, gone[:half]), t.deleteClients(name, gone[half:]))
	}
}

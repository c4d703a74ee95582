// Package nft makes the tables `inet clustermesh` and `arp clustermesh` what
// the plan says: rules that check what pods send and what comes out of the
// tunnel, masquerading to outside of the mesh, and the sets that they look
// things up in; and the table `inet clustermesh-services`, by which connections
// to Services are translated. Whatever is in these tables is ours. It decides
// nothing.
package nft

import (
	"context"
	"errors"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Target holds the rules, as one row, and the elements of all sets. They are
// one target because they change together: new rules and a set of a new shape
// come with its elements in one transaction, so there is no moment without.
type Target struct {
	conn
}

// New returns the target for the nft tables of a namespace.
func New(space nl.Space) *Target { return &Target{conn{space: space, name: tableName}} }

// List implements reconcile.Target.
func (t *Target) List(context.Context) (map[plan.FilterKey]plan.FilterRow, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	rows := map[plan.FilterKey]plan.FilterRow{}
	row, ok, err := readRow(t.reader)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if ok {
		rows[plan.FilterKey{}] = plan.FilterRow{Rules: row}
	}
	sets, err := readSets(t.reader, inetTable)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	for _, s := range sets {
		if !sameShape(s, allSets()) {
			continue // replaced together with the rules, and filled anew
		}
		elements, err := readElements(t.reader, inetTable, s.name)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		for _, k := range decode(plan.Set(s.name), elements) {
			rows[k] = plan.FilterRow{}
		}
	}
	return rows, nil
}

// Counters returns what has been dropped, by reason (drop_…).
func (t *Target) Counters(context.Context) (map[string]Counter, error) {
	return t.counters(skeleton(plan.Rules{}))
}

// Cleanup deletes all tables of this package.
func Cleanup(_ context.Context, space nl.Space) error {
	t := New(space)
	if err := t.open(); err != nil {
		return err
	}
	return errors.Join(t.deleteTables(append(skeleton(plan.Rules{}), servicesSkeleton(nil, nil))), t.Close())
}

package route

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

// Cleanup deletes all our neighbour proxies and rules, then routes and
// neighbours: nobody shall send here any more, and rules come first so that the
// node falls back to its other tables at once.
func Cleanup(ctx context.Context, space nl.Space) error {
	proxies, rules, routes, neighbours := NewProxies(space), NewRules(space), NewRoutes(space), NewNeighbours(space)
	return errors.Join(
		empty(ctx, proxies), empty(ctx, rules), empty(ctx, routes), empty(ctx, neighbours),
		proxies.Close(), rules.Close(), routes.Close(), neighbours.Close())
}

// empty deletes all that a target holds.
func empty[K, V comparable](ctx context.Context, t reconcile.Target[K, V]) error {
	rows, err := t.List(ctx)
	if err != nil {
		return err
	}
	failed := t.Apply(ctx, nil, slices.Collect(maps.Keys(rows)))
	return errors.Join(slices.Collect(maps.Values(failed))...)
}

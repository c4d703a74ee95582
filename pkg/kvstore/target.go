package kvstore

import (
	"context"
	"maps"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Target is a prefix of an etcd as a reconcile.Target: keys are what stands
// behind the prefix, values are written as they are.
type Target struct {
	client *clientv3.Client
	prefix string
	txnOps int
}

// NewTarget returns the rows below prefix as a target. It owns all of them: what
// is not wanted is deleted.
func NewTarget(client *clientv3.Client, prefix string) *Target {
	return &Target{client: client, prefix: prefix, txnOps: defaultTxnOps}
}

// List implements reconcile.Target.
func (t *Target) List(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	pages := newRangePages(t.client, t.prefix)
	for {
		row, ok, err := pages.peek(ctx)
		if err != nil {
			return nil, err
		}
		if !ok {
			return out, nil
		}
		out[row.Key[len(t.prefix):]] = string(row.Value)
		pages.skip()
	}
}

// Apply implements reconcile.Target. Rows are written in the order of their
// keys, in transactions: those of one that fails are all reported.
func (t *Target) Apply(ctx context.Context, set map[string]string, del []string) map[string]error {
	failed := map[string]error{}
	sets := slices.Sorted(maps.Keys(set))
	for chunk := range t.chunks(sets, func(k string) int { return len(k) + len(set[k]) }) {
		t.commit(ctx, chunk, failed, func(k string) clientv3.Op { return clientv3.OpPut(t.prefix+k, set[k]) })
	}
	dels := slices.Sorted(slices.Values(del))
	for chunk := range t.chunks(dels, func(k string) int { return len(k) }) {
		t.commit(ctx, chunk, failed, func(k string) clientv3.Op { return clientv3.OpDelete(t.prefix + k) })
	}
	return failed
}

// chunks cuts keys into what fits into a transaction.
func (t *Target) chunks(keys []string, size func(string) int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		from, bytes := 0, 0
		for i, k := range keys {
			n := size(k) + len(t.prefix)
			if i > from && (i-from >= t.txnOps || bytes+n > maxTxnBytes) {
				if !yield(keys[from:i]) {
					return
				}
				from, bytes = i, 0
			}
			bytes += n
		}
		if from < len(keys) {
			yield(keys[from:])
		}
	}
}

func (t *Target) commit(ctx context.Context, keys []string, failed map[string]error, op func(string) clientv3.Op) {
	w := writer{client: t.client, maxOps: len(keys) + 1}
	for _, k := range keys {
		w.ops = append(w.ops, op(k))
	}
	if err := w.flush(ctx); err != nil {
		for _, k := range keys {
			failed[k] = err
		}
	}
}

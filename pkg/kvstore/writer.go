package kvstore

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

const (
	// Transactions are large, as each costs a round through raft, and bounded,
	// as each is held in memory a few times over. These are an etcd's limits
	// unless it is configured otherwise: 128 operations, and 1.5 MiB, of which
	// we take a third. Larger ones were not faster.
	defaultTxnOps = 128
	maxTxnBytes   = 512 << 10

	writeTimeout = 10 * time.Second
)

// writer collects operations and commits them in transactions.
type writer struct {
	client *clientv3.Client
	maxOps int

	ops   []clientv3.Op
	bytes int
}

func (w *writer) put(ctx context.Context, key, value string) error {
	return w.add(ctx, clientv3.OpPut(key, value), len(key)+len(value))
}

func (w *writer) delete(ctx context.Context, key string) error {
	return w.add(ctx, clientv3.OpDelete(key), len(key))
}

// add takes an operation, and commits first if the transaction is full.
func (w *writer) add(ctx context.Context, op clientv3.Op, size int) error {
	if len(w.ops) >= w.maxOps || len(w.ops) > 0 && w.bytes+size > maxTxnBytes {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	w.ops = append(w.ops, op)
	w.bytes += size
	return nil
}

// flush commits what is left. Operations are gone whether it succeeds or not.
func (w *writer) flush(ctx context.Context) error {
	if len(w.ops) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	n, first := len(w.ops), string(w.ops[0].KeyBytes())
	_, err := w.client.Txn(ctx).Then(w.ops...).Commit()
	w.ops, w.bytes = nil, 0 // kept, it would hold on to the rows of the last list
	if err != nil {
		return fmt.Errorf("write %d rows from %s: %w", n, first, err)
	}
	return nil
}

// rangePages reads all rows that begin with prefix, at one revision, a page at a time.
type rangePages struct {
	client *clientv3.Client
	next   string
	end    string
	rev    int64
	done   bool
	rows   []Row // with full keys
}

func newRangePages(client *clientv3.Client, prefix string) *rangePages {
	return &rangePages{client: client, next: prefix, end: prefixEnd(prefix)}
}

// peek returns the first row that was not skipped yet; ok is false at the end.
func (p *rangePages) peek(ctx context.Context) (row Row, ok bool, err error) {
	if len(p.rows) == 0 && !p.done {
		if err := p.fetch(ctx); err != nil {
			return Row{}, false, err
		}
	}
	if len(p.rows) == 0 {
		return Row{}, false, nil
	}
	return p.rows[0], true, nil
}

func (p *rangePages) skip() { p.rows = p.rows[1:] }

func (p *rangePages) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := p.client.Get(ctx, p.next, clientv3.WithRange(p.end), clientv3.WithLimit(defaultPage), clientv3.WithRev(p.rev))
	if err != nil {
		return fmt.Errorf("read from %s: %w", p.next, err)
	}
	if p.rev == 0 {
		p.rev = resp.Header.Revision
	}
	p.rows = make([]Row, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		p.rows = append(p.rows, Row{Key: string(kv.Key), Value: kv.Value})
	}
	p.done = !resp.More
	if n := len(p.rows); n > 0 {
		p.next = p.rows[n-1].Key + "\x00"
	}
	return nil
}

// DeletePrefix deletes all rows below prefix, which ends in a slash: the mirror
// of a peer that was removed, for instance. A CopySink that copied there has to
// begin anew.
func DeletePrefix(ctx context.Context, client *clientv3.Client, prefix string) error {
	_, err := client.Txn(ctx).Then(clientv3.OpDelete(prefix, clientv3.WithPrefix()), deletePositions(prefix)).Commit()
	if err != nil {
		return fmt.Errorf("delete rows below %s: %w", prefix, err)
	}
	return nil
}

// Counts is how many rows of each kind are below prefix, which ends in a slash.
// It costs one look into etcd's index per kind.
func Counts(ctx context.Context, client *clientv3.Client, prefix string) (map[wire.Kind]int, error) {
	out := map[wire.Kind]int{}
	for _, k := range wire.Kinds() {
		key := prefix + wire.KindPrefix(k)
		resp, err := client.Get(ctx, key, clientv3.WithRange(partEnd(key)), clientv3.WithCountOnly())
		if err != nil {
			return nil, fmt.Errorf("count rows below %s: %w", key, err)
		}
		if resp.Count > 0 {
			out[k] = int(resp.Count)
		}
	}
	return out, nil
}

// partEnd is the end of the range of a part: behind its prefix, or behind its
// only key.
func partEnd(key string) string {
	if key[len(key)-1] == '/' {
		return prefixEnd(key)
	}
	return key + "\x00"
}

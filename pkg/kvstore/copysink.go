package kvstore

import (
	"context"
	"errors"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// CopyOptions of a CopySink. The functions decide and must not block; they are
// called from the reader's goroutine.
type CopyOptions struct {
	// Admit returns the rows that may be copied, in the order they came in; it
	// may change their values but not their keys. A row that it leaves out is
	// withdrawn from the copy. It gets pages of lists and sets of changes. Nil
	// admits all.
	Admit func(p Part, rows []Row) []Row
	// Begin is told that the list of a part begins: what was refused before is void.
	Begin func(p Part)
	// Gone is told which rows the source has deleted.
	Gone func(p Part, keys []string)
	// Tag, if not empty, makes the copy one that a Reader can resume: it is kept
	// with the position, and a position with another tag is void. Let it change
	// with whatever Admit decides by. It holds no space.
	Tag string
	// TxnOps is the number of rows per transaction; 0 means 128.
	TxnOps int
}

// CopySink copies what a Reader reads into a prefix of another etcd, and writes
// there only what differs. It holds a page of either side at a time, never all
// rows. It must be the only writer of the prefix.
type CopySink struct {
	client *clientv3.Client
	prefix string
	opt    CopyOptions
	w      writer
	part   *partCopy // nil outside of a part

	resumed  bool     // the list that goes on is of our own rows
	reaching Position // see Resumer
}

// NewCopySink returns a sink that copies below prefix, which ends in a slash.
func NewCopySink(dest *clientv3.Client, prefix string, opt CopyOptions) *CopySink {
	if opt.TxnOps == 0 {
		opt.TxnOps = defaultTxnOps
	}
	if opt.Admit == nil {
		opt.Admit = func(_ Part, rows []Row) []Row { return rows }
	}
	if opt.Begin == nil {
		opt.Begin = func(Part) {}
	}
	if opt.Gone == nil {
		opt.Gone = func(Part, []string) {}
	}
	return &CopySink{client: dest, prefix: prefix, opt: opt, w: writer{client: dest, maxOps: opt.TxnOps}}
}

// partCopy is the state of one part's list.
type partCopy struct {
	base    string // of destination keys
	here    *rangePages
	synced  []byte
	deletes []string // destination keys; deleted after the page's rows are there
}

// maxDeletes bounds how many keys wait for the end of their part.
const maxDeletes = 4096

func (c *CopySink) base(group string) string {
	if group == "" {
		return c.prefix
	}
	return c.prefix + group + "/"
}

// BeginList implements Sink.
func (c *CopySink) BeginList(ctx context.Context, l ListInfo) error {
	c.part, c.resumed = nil, l.Resumed
	c.w.ops, c.w.bytes = nil, 0 // of a list that was given up
	if l.Resumed {
		return nil
	}
	return c.forgetPosition(ctx)
}

// BeginPart implements Sink.
func (c *CopySink) BeginPart(_ context.Context, p Part, synced []byte) error {
	c.opt.Begin(p)
	base := c.base(p.Group)
	key := base + wire.KindPrefix(p.Kind)
	c.part = &partCopy{base: base, synced: synced,
		here: &rangePages{client: c.client, next: key, end: partEnd(key)}}
	return nil
}

// Rows implements Sink. Both sides are in the order of keys and are walked
// together.
func (c *CopySink) Rows(ctx context.Context, p Part, rows []Row) error {
	if c.part == nil {
		return errors.New("rows outside of a part")
	}
	if c.resumed { // they are there; what is not admitted any more is withdrawn
		return c.withdraw(ctx, p, rows)
	}
	admitted := c.opt.Admit(p, slices.Clone(rows))
	for _, row := range rows {
		ok := len(admitted) > 0 && admitted[0].Key == row.Key
		if ok {
			row, admitted = admitted[0], admitted[1:]
		}
		if err := c.merge(ctx, row, ok); err != nil {
			return err
		}
	}
	if len(admitted) > 0 {
		return errors.New("admission returned rows that it was not given, or out of order")
	}
	return nil
}

// withdraw deletes those of the rows that are not admitted.
func (c *CopySink) withdraw(ctx context.Context, p Part, rows []Row) error {
	admitted := c.opt.Admit(p, slices.Clone(rows))
	for _, row := range rows {
		if len(admitted) > 0 && admitted[0].Key == row.Key {
			admitted = admitted[1:]
			continue
		}
		if err := c.w.delete(ctx, c.part.base+row.Key); err != nil {
			return err
		}
	}
	return nil
}

// merge brings the destination up to row's key, and then to row.
func (c *CopySink) merge(ctx context.Context, row Row, admitted bool) error {
	key := c.part.base + row.Key
	old, there, err := c.passBy(ctx, key)
	if err != nil {
		return err
	}
	there = there && old.Key == key
	if there {
		c.part.here.skip()
	}
	switch {
	case admitted && !(there && string(old.Value) == string(row.Value)):
		return c.w.put(ctx, key, string(row.Value))
	case !admitted && there: // it is known to be refused, not just missing
		return c.w.delete(ctx, key)
	}
	return nil
}

// passBy goes by destination rows before key, which the source does not have,
// and returns the first one that is not before it. An empty key means the end.
func (c *CopySink) passBy(ctx context.Context, key string) (Row, bool, error) {
	for {
		old, ok, err := c.part.here.peek(ctx)
		if err != nil || !ok || key != "" && old.Key >= key {
			return old, ok, err
		}
		c.part.here.skip()
		if c.part.synced == nil {
			continue // the source can't say yet that it is gone
		}
		if c.part.deletes = append(c.part.deletes, old.Key); len(c.part.deletes) >= maxDeletes {
			if err := c.deleteWaiting(ctx); err != nil {
				return Row{}, false, err
			}
		}
	}
}

func (c *CopySink) deleteWaiting(ctx context.Context) error {
	for _, key := range c.part.deletes {
		if err := c.w.delete(ctx, key); err != nil {
			return err
		}
	}
	c.part.deletes = nil
	return nil
}

// EndPart implements Sink. The mark is copied once the rows it vouches for are
// there.
func (c *CopySink) EndPart(ctx context.Context, p Part) error {
	if c.resumed {
		c.part = nil
		return c.w.flush(ctx)
	}
	if _, _, err := c.passBy(ctx, ""); err != nil {
		return err
	}
	if err := c.deleteWaiting(ctx); err != nil {
		return err
	}
	if err := c.w.flush(ctx); err != nil {
		return err
	}
	part := c.part
	c.part = nil
	if part.synced == nil {
		return nil
	}
	key := part.base + wire.KindPrefix(wire.KindSynced) + string(p.Kind)
	old, err := c.client.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(old.Kvs) == 1 && string(old.Kvs[0].Value) == string(part.synced) {
		return nil
	}
	if err := c.w.put(ctx, key, string(part.synced)); err != nil {
		return err
	}
	return c.w.flush(ctx)
}

// EndList implements Sink.
func (c *CopySink) EndList(ctx context.Context) error {
	if c.resumed {
		c.resumed = false
		return nil
	}
	if err := c.savePosition(ctx); err != nil {
		return err
	}
	return c.w.flush(ctx)
}

// Events implements Sink. Of several changes of a row the last one counts.
func (c *CopySink) Events(ctx context.Context, events []Event) error {
	c.w.ops, c.w.bytes = nil, 0
	type id struct{ group, key string }
	last := make(map[id]int, len(events))
	for i, e := range events {
		last[id{e.Part.Group, e.Key}] = i
	}
	sets, gone := map[Part][]Row{}, map[Part][]string{}
	var parts []Part
	for i, e := range events {
		if last[id{e.Part.Group, e.Key}] != i {
			continue
		}
		if sets[e.Part] == nil && gone[e.Part] == nil {
			parts = append(parts, e.Part)
		}
		if e.Deleted {
			gone[e.Part] = append(gone[e.Part], e.Key)
		} else {
			sets[e.Part] = append(sets[e.Part], e.Row)
		}
	}
	slices.SortFunc(parts, byWireOrder)
	for _, p := range parts {
		if err := c.set(ctx, p, sets[p]); err != nil {
			return err
		}
	}
	slices.Reverse(parts)
	for _, p := range parts {
		if err := c.deleteGone(ctx, p, gone[p]); err != nil {
			return err
		}
	}
	if err := c.savePosition(ctx); err != nil {
		return err
	}
	return c.w.flush(ctx)
}

// set writes changed rows of a part, and withdraws those that are refused.
func (c *CopySink) set(ctx context.Context, p Part, rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Key, b.Key) })
	admitted := c.opt.Admit(p, slices.Clone(rows))
	base := c.base(p.Group)
	for _, row := range rows {
		var err error
		if len(admitted) > 0 && admitted[0].Key == row.Key {
			err = c.w.put(ctx, base+row.Key, string(admitted[0].Value))
			admitted = admitted[1:]
		} else {
			err = c.w.delete(ctx, base+row.Key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *CopySink) deleteGone(ctx context.Context, p Part, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	c.opt.Gone(p, keys)
	for _, key := range keys {
		if err := c.w.delete(ctx, c.base(p.Group)+key); err != nil {
			return err
		}
	}
	return nil
}

// byWireOrder puts what a row refers to before it.
func byWireOrder(a, b Part) int {
	kinds := wire.Kinds()
	if d := slices.Index(kinds, a.Kind) - slices.Index(kinds, b.Kind); d != 0 {
		return d
	}
	return strings.Compare(a.Group, b.Group)
}

package kvstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// listAnyway is how long after it was resumed a reader lists everything: what
// was refused before the restart is not among the sink's rows, and is learnt so.
const listAnyway = time.Minute

// resume takes up where the last process ended, if that is known. Whether the
// source still has that history shows when it is watched.
func (r *Reader) resume(ctx context.Context) (later *time.Timer) {
	later = time.AfterFunc(listAnyway+jitter(listAnyway), r.Relist)
	sink, ok := r.sink.(Resumer)
	if !ok || r.opt.Resume == nil || r.opt.Grouped {
		later.Stop()
		return later
	}
	pos, ok, err := sink.Reached(ctx)
	if err == nil && ok {
		err = r.handBack(ctx, sink, pos)
	}
	if err != nil || !ok {
		later.Stop()
		if err != nil {
			r.opt.Log.Warn("not resumed, listing instead", "prefix", r.opt.Prefix, "error", err)
		}
		return later
	}
	r.cluster, r.revision, r.listedAt = pos.ClusterID, pos.Revision, map[Part]int64{}
	r.update(func(s *State) { s.Synced, s.ClusterID, s.Revision = true, pos.ClusterID, pos.Revision })
	return later
}

// handBack gives the sink its own rows.
func (r *Reader) handBack(ctx context.Context, sink Resumer, pos Position) error {
	r.vouched = map[Part]bool{}
	for _, kind := range pos.Vouched {
		r.vouched[Part{Kind: kind}] = true
	}
	l := ListInfo{ClusterID: pos.ClusterID, Revision: pos.Revision, Resumed: true}
	if err := sink.BeginList(ctx, l); err != nil {
		return err
	}
	for _, kind := range r.opt.Resume {
		p := Part{Kind: kind}
		var synced []byte
		if r.vouched[p] {
			synced = []byte{}
		}
		if err := sink.BeginPart(ctx, p, synced); err != nil {
			return err
		}
		if err := sink.Held(ctx, kind, func(rows []Row) error { return sink.Rows(ctx, p, rows) }); err != nil {
			return err
		}
		if err := sink.EndPart(ctx, p); err != nil {
			return err
		}
	}
	sink.Reaching(pos)
	return sink.EndList(ctx)
}

// reaching tells a sink that wants to know where the next call brings it.
func (r *Reader) reaching(cluster uint64, revision int64) {
	sink, ok := r.sink.(Resumer)
	if !ok || r.opt.Grouped {
		return
	}
	pos := Position{ClusterID: cluster, Revision: revision}
	for _, kind := range r.opt.Kinds {
		if r.vouched[Part{Kind: kind}] {
			pos.Vouched = append(pos.Vouched, kind)
		}
	}
	sink.Reaching(pos)
}

// positionRoot is where the positions of copies lie: outside of the copies,
// since it is nobody else's business, and known to DeletePrefix.
const positionRoot = "/clustermesh/position"

// Reaching implements Resumer.
func (c *CopySink) Reaching(pos Position) { c.reaching = pos }

// savePosition adds the position to the last transaction of a call, so that it
// and the rows that it speaks of are written together or not at all.
func (c *CopySink) savePosition(ctx context.Context) error {
	if c.opt.Tag == "" || c.reaching.ClusterID == 0 {
		return nil
	}
	return c.w.put(ctx, positionRoot+c.prefix, formatPosition(c.opt.Tag, c.reaching))
}

// Reached implements Resumer.
func (c *CopySink) Reached(ctx context.Context) (Position, bool, error) {
	if c.opt.Tag == "" {
		return Position{}, false, nil
	}
	resp, err := c.client.Get(ctx, positionRoot+c.prefix)
	if err != nil {
		return Position{}, false, fmt.Errorf("read position of %s: %w", c.prefix, err)
	}
	if len(resp.Kvs) == 0 {
		return Position{}, false, nil
	}
	pos, ok := parsePosition(c.opt.Tag, string(resp.Kvs[0].Value))
	return pos, ok, nil
}

// Held implements Resumer.
func (c *CopySink) Held(ctx context.Context, kind wire.Kind, page func([]Row) error) error {
	key := c.prefix + wire.KindPrefix(kind)
	here := &rangePages{client: c.client, next: key, end: partEnd(key)}
	for {
		_, ok, err := here.peek(ctx)
		if err != nil || !ok {
			return err
		}
		for i := range here.rows {
			here.rows[i].Key = here.rows[i].Key[len(c.prefix):]
		}
		if err := page(here.rows); err != nil {
			return err
		}
		here.rows = nil
	}
}

// forgetPosition makes the copy one that can't be resumed: until its list has
// ended it is neither what it was nor what it will be.
func (c *CopySink) forgetPosition(ctx context.Context) error {
	c.reaching = Position{}
	if c.opt.Tag == "" {
		return nil
	}
	if _, err := c.client.Delete(ctx, positionRoot+c.prefix); err != nil {
		return fmt.Errorf("delete position of %s: %w", c.prefix, err)
	}
	return nil
}

// deletePositions is the operation that forgets all positions below prefix.
func deletePositions(prefix string) clientv3.Op {
	return clientv3.OpDelete(positionRoot+prefix, clientv3.WithPrefix())
}

// formatPosition writes a position as text: tag, cluster, revision, kinds.
func formatPosition(tag string, p Position) string {
	kinds := make([]string, 0, len(p.Vouched))
	for _, k := range p.Vouched {
		kinds = append(kinds, string(k))
	}
	return fmt.Sprintf("%s %016x %d %s", tag, p.ClusterID, p.Revision, strings.Join(kinds, ","))
}

// parsePosition reads what formatPosition wrote with the same tag.
func parsePosition(tag, s string) (Position, bool) {
	f := strings.Split(s, " ")
	if len(f) != 4 || f[0] != tag {
		return Position{}, false
	}
	cluster, err1 := strconv.ParseUint(f[1], 16, 64)
	revision, err2 := strconv.ParseInt(f[2], 10, 64)
	if err1 != nil || err2 != nil {
		return Position{}, false
	}
	p := Position{ClusterID: cluster, Revision: revision}
	if f[3] != "" {
		for _, k := range strings.Split(f[3], ",") {
			p.Vouched = append(p.Vouched, wire.Kind(k))
		}
	}
	return p, true
}

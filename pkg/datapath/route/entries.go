package route

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

const ndaProtocol = 12 // NDA_PROTOCOL, since 5.2: who made the entry

// entries is the target for one kind of entries of the kernel's neighbour table.
type entries[V comparable] struct {
	socket
	noun   string
	flags  byte // NTF_…, of all of them
	encode func(header []byte, row V) []byte
	decode func(body []byte, names map[uint32]string) (key plan.NeighbourKey, row V, ours bool)
}

// List implements reconcile.Target.
func (t *entries[V]) List(context.Context) (map[plan.NeighbourKey]V, error) {
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	names, err := c.Names()
	if err != nil {
		return nil, err
	}
	var rows map[plan.NeighbourKey]V
	header := make([]byte, unix.SizeofNdMsg)
	header[10] = t.flags
	err = c.Dump(nl.Request{Type: unix.RTM_GETNEIGH, Body: header},
		func() { rows = map[plan.NeighbourKey]V{} },
		func(_ uint16, body []byte) error {
			if key, row, ok := t.decode(body, names); ok {
				rows[key] = row
			}
			return nil
		})
	if err != nil {
		return nil, t.broken(fmt.Errorf("list entries of kind %s: %w", t.noun, err))
	}
	return rows, nil
}

// Apply implements reconcile.Target.
func (t *entries[V]) Apply(_ context.Context, set map[plan.NeighbourKey]V, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	c, err := t.conn()
	if err != nil {
		return all(err, set, del)
	}
	failed := map[plan.NeighbourKey]error{}
	batch := batch[plan.NeighbourKey]{verb: "set " + t.noun}
	indexes := map[string]uint32{}
	for key, row := range set {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			failed[key] = fmt.Errorf("set %s %v: %w", t.noun, key, err)
			continue
		}
		attrs := nl.Attrs(t.encode(t.header(key, index), row))
		attrs.U8(ndaProtocol, plan.Proto)
		batch.add(key, nl.Request{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: attrs})
	}
	batch.send(c, failed)
	batch.verb, batch.gone = "delete "+t.noun, []error{unix.ENOENT, unix.ENODEV}
	for _, key := range del {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			continue // it went with its device
		}
		batch.add(key, nl.Request{Type: unix.RTM_DELNEIGH, Body: t.header(key, index)})
	}
	batch.send(c, failed)
	return failed
}

// header names an entry.
func (t *entries[V]) header(key plan.NeighbourKey, index uint32) []byte {
	h := make([]byte, unix.SizeofNdMsg)
	h[0], h[10] = family(key.IP), t.flags
	binary.NativeEndian.PutUint32(h[4:], index)
	attrs := nl.Attrs(h)
	attrs.Addr(unix.NDA_DST, key.IP)
	return attrs
}

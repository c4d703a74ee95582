package route

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

const ndaProtocol = 12 // NDA_PROTOCOL, since 5.2: who made the entry

// Neighbours is the target for permanent neighbours on our devices.
type Neighbours struct{ socket }

// NewNeighbours returns the target for the neighbours of a namespace.
func NewNeighbours(space nl.Space) *Neighbours {
	return &Neighbours{socket: socket{space: space}}
}

// List implements reconcile.Target. What the kernel learnt by itself is not
// told, so that a wanted neighbour in its place is missing and set.
func (t *Neighbours) List(context.Context) (map[plan.NeighbourKey]plan.Neighbour, error) {
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	names, err := c.Names()
	if err != nil {
		return nil, err
	}
	var rows map[plan.NeighbourKey]plan.Neighbour
	err = c.Dump(nl.Request{Type: unix.RTM_GETNEIGH, Body: make([]byte, unix.SizeofNdMsg)},
		func() { rows = map[plan.NeighbourKey]plan.Neighbour{} },
		func(_ uint16, body []byte) error {
			if key, row, ok := decodeNeighbour(body, names); ok {
				rows[key] = row
			}
			return nil
		})
	if err != nil {
		return nil, t.broken(fmt.Errorf("list neighbours: %w", err))
	}
	return rows, nil
}

// Apply implements reconcile.Target.
func (t *Neighbours) Apply(_ context.Context, set map[plan.NeighbourKey]plan.Neighbour, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	c, err := t.conn()
	if err != nil {
		return all(err, set, del)
	}
	failed := map[plan.NeighbourKey]error{}
	batch := batch[plan.NeighbourKey]{verb: "set neighbour"}
	indexes := map[string]uint32{}
	for key, row := range set {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			failed[key] = fmt.Errorf("set neighbour %v: %w", key, err)
			continue
		}
		batch.add(key, nl.Request{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: encodeNeighbour(key, row.MAC, index)})
	}
	batch.send(c, failed)
	batch.verb, batch.gone = "delete neighbour", []error{unix.ENOENT, unix.ENODEV}
	for _, key := range del {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			continue // it went with its device
		}
		batch.add(key, nl.Request{Type: unix.RTM_DELNEIGH, Body: encodeNeighbour(key, model.MAC{}, index)})
	}
	batch.send(c, failed)
	return failed
}

// Watch implements reconcile.Watcher. Neighbours go with their device, and
// when it is set down.
func (t *Neighbours) Watch(ctx context.Context, wake func()) error {
	ours := map[uint32]bool{}
	return t.space.Watch(ctx, unix.NETLINK_ROUTE, []uint32{unix.RTNLGRP_NEIGH, unix.RTNLGRP_LINK}, func(e nl.Event) {
		switch e.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			index, name, ok := nl.LinkName(e.Body)
			if !ok || !strings.HasPrefix(name, plan.IfPrefix) {
				return
			}
			ours[index] = e.Type == unix.RTM_NEWLINK
			if linkChanged(e) {
				wake()
			}
		default:
			if len(e.Body) >= unix.SizeofNdMsg && e.Sender != t.sender() && t.foreignChange(e, ours) {
				wake()
			}
		}
	}, wake)
}

// foreignChange tells whether a notification is of a neighbour that may have
// been ours. A device that was there before the watch began is not in ours, so
// what is permanent counts on any device.
func (t *Neighbours) foreignChange(e nl.Event, ours map[uint32]bool) bool {
	index, state := nl.U32Of(e.Body[4:8]), binary.NativeEndian.Uint16(e.Body[8:])
	known, seen := ours[index]
	return known || !seen && (state&unix.NUD_PERMANENT != 0 || e.Type == unix.RTM_DELNEIGH)
}

func encodeNeighbour(key plan.NeighbourKey, mac model.MAC, index uint32) []byte {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = family(key.IP)
	binary.NativeEndian.PutUint32(h[4:], index)
	attrs := nl.Attrs(h)
	if mac != (model.MAC{}) {
		binary.NativeEndian.PutUint16(h[8:], unix.NUD_PERMANENT)
		attrs.Bytes(unix.NDA_LLADDR, mac[:])
		attrs.U8(ndaProtocol, plan.Proto)
	}
	attrs.Addr(unix.NDA_DST, key.IP)
	return attrs
}

func decodeNeighbour(body []byte, names map[uint32]string) (key plan.NeighbourKey, row plan.Neighbour, ok bool) {
	if len(body) < unix.SizeofNdMsg || binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT == 0 || body[10] != 0 {
		return key, row, false
	}
	key.Dev = names[nl.U32Of(body[4:8])]
	for typ, v := range nl.Each(body[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			key.IP = nl.AddrOf(v)
		case unix.NDA_LLADDR:
			copy(row.MAC[:], v)
		}
	}
	return key, row, key.IP.IsValid() && strings.HasPrefix(key.Dev, plan.IfPrefix)
}

package route

import (
	"context"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Neighbours is the target for permanent neighbours on our devices. What the
// kernel learnt by itself is not listed, so that a wanted neighbour in its place
// is missing and set.
type Neighbours struct{ entries[plan.Neighbour] }

// NewNeighbours returns the target for the neighbours of a namespace.
func NewNeighbours(space nl.Space) *Neighbours {
	return &Neighbours{entries[plan.Neighbour]{socket{space: space}, "neighbour", 0, encodeNeighbour, decodeNeighbour}}
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

func encodeNeighbour(h []byte, row plan.Neighbour) []byte {
	binary.NativeEndian.PutUint16(h[8:], unix.NUD_PERMANENT)
	attrs := nl.Attrs(h)
	attrs.Bytes(unix.NDA_LLADDR, row.MAC[:])
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

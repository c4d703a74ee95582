package route

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Proxies is the target for neighbour proxy entries, by which the kernel answers
// ARP and neighbour solicitations for addresses that are not its own. They are on
// devices of the node, and ours by their protocol.
type Proxies struct{ socket }

// NewProxies returns the target for the proxy entries of a namespace.
func NewProxies(space nl.Space) *Proxies { return &Proxies{socket: socket{space: space}} }

// List implements reconcile.Target.
func (t *Proxies) List(context.Context) (map[plan.NeighbourKey]plan.Proxy, error) {
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	names, err := c.Names()
	if err != nil {
		return nil, err
	}
	header := make([]byte, unix.SizeofNdMsg)
	header[10] = unix.NTF_PROXY
	var rows map[plan.NeighbourKey]plan.Proxy
	err = c.Dump(nl.Request{Type: unix.RTM_GETNEIGH, Body: header},
		func() { rows = map[plan.NeighbourKey]plan.Proxy{} },
		func(_ uint16, body []byte) error {
			if key, ok := decodeProxy(body, names); ok {
				rows[key] = plan.Proxy{}
			}
			return nil
		})
	if err != nil {
		return nil, t.broken(fmt.Errorf("list neighbour proxies: %w", err))
	}
	return rows, nil
}

// Apply implements reconcile.Target.
func (t *Proxies) Apply(_ context.Context, set map[plan.NeighbourKey]plan.Proxy, del []plan.NeighbourKey) map[plan.NeighbourKey]error {
	c, err := t.conn()
	if err != nil {
		return all(err, set, del)
	}
	failed := map[plan.NeighbourKey]error{}
	batch := batch[plan.NeighbourKey]{verb: "set neighbour proxy"}
	indexes := map[string]uint32{}
	for key := range set {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			failed[key] = fmt.Errorf("set neighbour proxy %v: %w", key, err)
			continue
		}
		batch.add(key, nl.Request{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: encodeProxy(key, index, true)})
	}
	batch.send(c, failed)
	batch.verb, batch.gone = "delete neighbour proxy", []error{unix.ENOENT, unix.ENODEV}
	for _, key := range del {
		index, err := indexOf(c, indexes, key.Dev)
		if err != nil {
			continue // it went with its device
		}
		batch.add(key, nl.Request{Type: unix.RTM_DELNEIGH, Body: encodeProxy(key, index, false)})
	}
	batch.send(c, failed)
	return failed
}

// Watch implements reconcile.Watcher. The kernel drops entries when a device is
// set down, which it tells; that somebody deletes one it
// does not tell (Linux 6.18), so who runs the loop lists often.
func (t *Proxies) Watch(ctx context.Context, wake func()) error {
	return t.space.Watch(ctx, unix.NETLINK_ROUTE, []uint32{unix.RTNLGRP_LINK}, func(e nl.Event) {
		if _, name, ok := nl.LinkName(e.Body); ok && !pod(name) {
			wake()
		}
	}, wake)
}

func encodeProxy(key plan.NeighbourKey, index uint32, add bool) []byte {
	h := make([]byte, unix.SizeofNdMsg)
	h[0], h[10] = family(key.IP), unix.NTF_PROXY
	binary.NativeEndian.PutUint32(h[4:], index)
	attrs := nl.Attrs(h)
	attrs.Addr(unix.NDA_DST, key.IP)
	if add {
		attrs.U8(ndaProtocol, plan.Proto)
	}
	return attrs
}

func decodeProxy(body []byte, names map[uint32]string) (key plan.NeighbourKey, ours bool) {
	if len(body) < unix.SizeofNdMsg || body[10]&unix.NTF_PROXY == 0 {
		return key, false
	}
	key.Dev = names[nl.U32Of(body[4:8])]
	for typ, v := range nl.Each(body[unix.SizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			key.IP = nl.AddrOf(v)
		case ndaProtocol:
			ours = len(v) == 1 && v[0] == plan.Proto
		}
	}
	return key, ours && key.Dev != "" && key.IP.IsValid()
}

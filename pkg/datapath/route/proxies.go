package route

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Proxies is the target for neighbour proxy entries, by which the kernel answers
// ARP and neighbour solicitations for addresses that are not its own. They are on
// devices of the node, and ours by their protocol.
type Proxies struct{ entries[plan.Proxy] }

// NewProxies returns the target for the proxy entries of a namespace.
func NewProxies(space nl.Space) *Proxies {
	return &Proxies{entries[plan.Proxy]{socket{space: space}, "neighbour proxy", unix.NTF_PROXY, encodeProxy, decodeProxy}}
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

func encodeProxy(h []byte, _ plan.Proxy) []byte { return h }

func decodeProxy(body []byte, names map[uint32]string) (key plan.NeighbourKey, row plan.Proxy, ours bool) {
	if len(body) < unix.SizeofNdMsg || body[10]&unix.NTF_PROXY == 0 {
		return key, row, false
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
	return key, row, ours && key.Dev != "" && key.IP.IsValid()
}

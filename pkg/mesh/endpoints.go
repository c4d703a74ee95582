package mesh

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/clustermesh/clustermesh/pkg/config"
)

// endpoints are those of the Peer object, those that the peer announces, then
// where its own connections to us come from, and its nodes: a server whose
// address changed, or that moved to another node, while nobody listened is found
// there. TLS proves who answers, so a wrong address can do no harm.
func (l *link) endpoints() []string {
	out := slices.Clone(l.rules.Endpoints)
	l.mu.Lock()
	defer l.mu.Unlock()
	learnt := l.recalled
	if l.header != nil {
		learnt = l.header.Endpoints
	}
	for _, e := range learnt {
		if len(out) < len(l.rules.Endpoints)+maxLearnt && dialable(e) && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	port := meshPort(out)
	var more []netip.Addr
	if l.opt.Callers != nil {
		callers := l.opt.Callers(l.rules.Peer)
		more = callers[:min(len(callers), maxLearnt)]
	}
	for _, a := range append(more, l.claims.someAddrs(l.rules.Peer, maxNodes)...) {
		if e := netip.AddrPortFrom(a, port).String(); !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out
}

// meshPort is the port of the first endpoint, which those on nodes share.
func meshPort(endpoints []string) uint16 {
	_, port, err := net.SplitHostPort(endpoints[0])
	if err != nil {
		return 0 // rules and rows were checked: there is a port
	}
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n)
}

// dialable refuses addresses that lead to ourselves wherever we are.
func dialable(endpoint string) bool {
	if config.HostPort(endpoint) != nil {
		return false
	}
	ap, err := netip.ParseAddrPort(endpoint)
	return err != nil || sane(ap.Addr())
}

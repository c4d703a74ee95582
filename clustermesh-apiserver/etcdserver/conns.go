package etcdserver

import (
	"container/list"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/clustermesh/clustermesh/pkg/pki"
)

// conn is a connection whose client has proven who it is.
type conn struct {
	net.Conn
	front *Front
	id    pki.Identity
	chain []*x509.Certificate
	once  sync.Once

	watches atomic.Int32 // on all its streams
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() { c.front.forget(c) })
	return c.Conn.Close()
}

// authInfo is what a handshake leaves for the interceptors.
type authInfo struct {
	credentials.TLSInfo
	conn *conn
}

// creds are TLS credentials that keep count of who is connected.
type creds struct {
	credentials.TransportCredentials
	front *Front
}

func (f *Front) credentials() credentials.TransportCredentials {
	return creds{credentials.NewTLS(pki.ServerConfig(f.opt.Trust, f.opt.Now)), f}
}

// ServerHandshake implements credentials.TransportCredentials.
func (c creds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	end := c.front.handshakes.begin(raw)
	secure, info, err := c.TransportCredentials.ServerHandshake(raw)
	end()
	if err != nil {
		c.front.opt.Meter.Refused("handshake")
		c.front.opt.Log.Debug("client refused", "remote", raw.RemoteAddr(), "error", err)
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("handshake gave %T", info), secure.Close())
	}
	tracked, err := c.front.admit(secure, tlsInfo.State.PeerCertificates)
	if err != nil {
		return nil, nil, errors.Join(err, secure.Close())
	}
	return tracked, authInfo{tlsInfo, tracked}, nil
}

// Clone implements credentials.TransportCredentials.
func (c creds) Clone() credentials.TransportCredentials {
	return creds{c.TransportCredentials.Clone(), c.front}
}

// admit registers a connection and then looks at its certificate: in this order,
// so that one whose trust ends meanwhile is found either here or by Recheck.
func (f *Front) admit(secure net.Conn, chain []*x509.Certificate) (*conn, error) {
	c := &conn{Conn: secure, front: f, chain: chain}
	id, err := f.identify(chain)
	if err != nil {
		f.opt.Meter.Refused("revoked")
		return nil, err
	}
	c.id = id
	if err := f.register(c); err != nil {
		f.opt.Meter.Refused("connections")
		return nil, err
	}
	f.opt.Meter.Connections(id.Role, 1)
	if _, err := f.identify(chain); err != nil {
		f.opt.Meter.Refused("revoked")
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (f *Front) register(c *conn) error {
	limit := maxConnsPerPeer
	if c.id.Role == pki.RoleAgent {
		limit = maxConnsPerAgents
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for other := range f.conns {
		if other.id == c.id {
			n++
		}
	}
	if n >= limit {
		return fmt.Errorf("%s has %d connections already", c.id, n)
	}
	f.conns[c] = struct{}{}
	return nil
}

func (f *Front) forget(c *conn) {
	f.mu.Lock()
	_, known := f.conns[c]
	delete(f.conns, c)
	f.mu.Unlock()
	if known {
		f.opt.Meter.Connections(c.id.Role, -1)
	}
}

func (f *Front) identify(chain []*x509.Certificate) (pki.Identity, error) {
	t := f.opt.Trust()
	if t == nil {
		return pki.Identity{}, errors.New("mesh API server trusts nobody yet")
	}
	return t.Identify(chain, f.opt.Now())
}

// Recheck closes every connection whose certificate is not accepted any more.
// Call it after the trust has changed: etcd asks for permission only when a
// watch begins, so a watch must not outlive the trust it began with.
func (f *Front) Recheck() {
	f.mu.Lock()
	all := make([]*conn, 0, len(f.conns))
	for c := range f.conns {
		all = append(all, c)
	}
	f.mu.Unlock()
	for _, c := range all {
		if _, err := f.identify(c.chain); err != nil {
			f.opt.Log.Info("connection ended", "client", c.id.String(), "remote", c.RemoteAddr(), "reason", err)
			_ = c.Close() // it may be closed already
		}
	}
}

// Conns is the number of connections by client.
func (f *Front) Conns() map[pki.Identity]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[pki.Identity]int{}
	for c := range f.conns {
		out[c.id]++
	}
	return out
}

// Callers are the addresses that a peer's connections come from, each once.
func (f *Front) Callers(peer string) []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []netip.Addr
	for c := range f.conns {
		ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if addr := ap.Addr().Unmap(); err == nil && c.id == (pki.Identity{Role: pki.RolePeer, Name: peer}) && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// caller is whose connection a request came on.
func caller(ctx context.Context) (*conn, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.conn, ok
}

// handshakes are the connections of those who have not proven anything yet. The
// oldest one makes room for the newest: whoever is honest is done in a moment.
type handshakes struct {
	mu   sync.Mutex
	open list.List // guarded by mu: of net.Conn, the oldest first
}

// begin notes a connection until end is called.
func (h *handshakes) begin(c net.Conn) (end func()) {
	h.mu.Lock()
	e := h.open.PushBack(c)
	var oldest any
	if h.open.Len() > maxHandshakes {
		oldest = h.open.Remove(h.open.Front())
	}
	h.mu.Unlock()
	if old, ok := oldest.(net.Conn); ok {
		_ = old.Close() // its handshake fails, which is counted there
	}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.open.Remove(e) // nothing if it is out already
	}
}

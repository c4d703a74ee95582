package dns

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// guard is a listener that holds a number of connections at most: a new one
// takes the place of the one that was silent for longest.
type guard struct {
	net.Listener
	most         int
	writeTimeout time.Duration

	mu     sync.Mutex
	conns  map[*conn]struct{} // guarded by mu
	closed bool               // guarded by mu
}

type conn struct {
	net.Conn
	guard *guard
	heard atomic.Int64 // when it last said something, in nanoseconds since 1970
}

func newGuard(l net.Listener, most int, writeTimeout time.Duration) *guard {
	return &guard{Listener: l, most: most, writeTimeout: writeTimeout, conns: map[*conn]struct{}{}}
}

// Accept implements net.Listener. Errors of the moment, such as too many open
// files, are waited out.
func (g *guard) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		return g.hold(c), nil
	}
}

func (g *guard) hold(c net.Conn) *conn {
	out := &conn{Conn: c, guard: g}
	out.heard.Store(time.Now().UnixNano())
	g.mu.Lock()
	var oldest *conn
	if len(g.conns) >= g.most {
		for x := range g.conns {
			if oldest == nil || x.heard.Load() < oldest.heard.Load() {
				oldest = x
			}
		}
		delete(g.conns, oldest)
	}
	g.conns[out] = struct{}{}
	closed := g.closed
	g.mu.Unlock()
	if oldest != nil {
		oldest.Conn.Close()
	}
	if closed {
		out.Close()
	}
	return out
}

// closeAll closes the listener and every connection.
func (g *guard) closeAll() {
	g.Listener.Close()
	g.mu.Lock()
	g.closed = true
	all := g.conns
	g.conns = map[*conn]struct{}{}
	g.mu.Unlock()
	for c := range all {
		c.Conn.Close()
	}
}

func (g *guard) len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write implements net.Conn. Who does not read is not waited for.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.guard.writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.guard.mu.Lock()
	delete(c.guard.conns, c)
	c.guard.mu.Unlock()
	return c.Conn.Close()
}

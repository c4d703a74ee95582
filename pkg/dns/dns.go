// Package dns serves a zone (pkg/dns/zone) over UDP and TCP, and keeps it equal
// to the tables of what Kubernetes says. It resolves nothing else: questions
// about other zones are refused.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
)

// Options are what a server needs.
type Options struct {
	Log      *slog.Logger
	Zone     *zone.Zone
	Meter    *Meter
	UDPSize  uint16 // octets of the longest answer over UDP
	MaxConns int    // TCP connections at a time; 0: 500
	// Timeouts of TCP connections; 0: CoreDNS's.
	ReadTimeout, WriteTimeout, IdleTimeout time.Duration
}

// Server answers on its sockets, which New opens, so that a port that is taken
// is an error at once.
type Server struct {
	opt Options
	udp []*net.UDPConn
	tcp *guard
}

// New opens the sockets at an address, host:port.
func New(ctx context.Context, addr string, opt Options) (*Server, error) {
	opt.MaxConns = cmp.Or(opt.MaxConns, 500)
	opt.ReadTimeout = cmp.Or(opt.ReadTimeout, 3*time.Second)
	opt.WriteTimeout = cmp.Or(opt.WriteTimeout, 5*time.Second)
	opt.IdleTimeout = cmp.Or(opt.IdleTimeout, 10*time.Second)
	s := &Server{opt: opt}
	lc := net.ListenConfig{Control: control}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for DNS over TCP: %w", err)
	}
	s.tcp = newGuard(l, opt.MaxConns, opt.WriteTimeout)
	for range runtime.GOMAXPROCS(0) {
		// The port that TCP got, for tests that ask for any.
		p, err := lc.ListenPacket(ctx, "udp", l.Addr().String())
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen for DNS over UDP: %w", err)
		}
		s.udp = append(s.udp, p.(*net.UDPConn))
	}
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() string { return s.tcp.Addr().String() }

// control makes the kernel spread datagrams over several sockets of the same
// port, and tell the address that each was sent to: the answer has to come from
// there.
func control(network, _ string, c syscall.RawConn) error {
	var err error
	return cmp.Or(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if err != nil || network[:3] != "udp" {
			return
		}
		err4 := unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		err6 := unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if err4 != nil && err6 != nil { // a socket of one family knows only its own
			err = errors.Join(err4, err6)
		}
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) // bursts; the kernel has a limit of its own
	}), err)
}

// Run answers until ctx ends; queries that were begun over TCP get a few
// seconds to end.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	failed := make(chan error, len(s.udp)+1)
	start := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				failed <- err
				cancel()
			}
		})
	}
	for _, c := range s.udp {
		start(func(ctx context.Context) error { return s.serveUDP(ctx, c) })
	}
	start(s.serveTCP)
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

func (s *Server) close() {
	for _, c := range s.udp {
		c.Close()
	}
	s.tcp.closeAll()
}

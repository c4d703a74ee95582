package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
)

// maxQuery is the longest query in octets that is read: a name, and an OPT
// record with more in it than anybody sends.
const maxQuery = 4096

// worker answers one query after the other, and reuses all that it needs: no
// query waits for anything, so a goroutine for each would only cost.
type worker struct {
	s   *Server
	q   zone.Query
	out []byte
	rnd *rand.Rand
}

func (s *Server) newWorker() *worker {
	return &worker{s: s, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// serveUDP answers what arrives at one socket, until ctx ends.
func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn) error {
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	w := s.newWorker()
	in, oob := make([]byte, maxQuery), make([]byte, 128)
	for {
		n, oobn, flags, from, err := c.ReadMsgUDPAddrPort(in, oob)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("read from %v: %w", c.LocalAddr(), err)
		case err != nil: // the kernel is short of memory
			s.opt.Log.Warn("query can't be read", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		case flags&unix.MSG_TRUNC != 0:
			continue // nobody asks so much
		}
		start := time.Now()
		out := w.answer(in[:n])
		if out == nil {
			continue
		}
		// Who can't be reached, or whose buffer is full, asks again.
		_, _, _ = c.WriteMsgUDPAddrPort(out, replyFrom(oob[:oobn]), from)
		s.opt.Meter.count(exchange{q: &w.q, in: n, out: len(out), header: out, from: from.Addr(), took: time.Since(start)})
	}
}

// replyFrom turns what the kernel said of where a datagram was sent to into where
// the answer comes from. The same two structures serve both ways, but the
// interface must be left for routing to choose.
func replyFrom(oob []byte) []byte {
	for rest := oob; len(rest) > 0; {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			return nil
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			clear(data[0:4])
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 20:
			clear(data[16:20])
		default:
			return nil
		}
		rest = next
	}
	return oob
}

// answer is the answer to a datagram, nil if there must be none.
func (w *worker) answer(in []byte) (out []byte) {
	defer w.guard(&out)
	switch err := w.q.Parse(in); {
	case errors.Is(err, zone.ErrIgnore):
		return nil
	case errors.Is(err, zone.ErrNotImplemented):
		w.out = zone.Refuse(w.out, &w.q, dns.RcodeNotImplemented)
	case err != nil:
		w.out = zone.Refuse(w.out, &w.q, dns.RcodeFormatError)
	default:
		size := uint16(dns.MinMsgSize)
		if w.q.EDNS {
			size = min(max(w.q.UDPSize, dns.MinMsgSize), w.s.opt.UDPSize)
		}
		w.out = w.s.opt.Zone.Answer(w.out, &w.q, int(size), w.rnd.Uint64())
	}
	return w.out
}

// guard makes a failure of an answer when a query finds a bug: others must get theirs.
func (w *worker) guard(out *[]byte) {
	if r := recover(); r != nil {
		w.s.opt.Meter.panics.Inc()
		w.s.opt.Log.Error("query met a bug", "name", zone.Text(w.q.Name()), "type", w.q.Type, "panic", fmt.Sprint(r))
		w.out = nil
		*out = zone.Refuse(nil, &w.q, dns.RcodeServerFailure)
	}
}

package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
)

// grace is what queries over TCP get to end when the server stops.
const grace = 5 * time.Second

// serveTCP answers over TCP, until ctx ends. The answers of a connection come in
// the order of its questions.
func (s *Server) serveTCP(ctx context.Context) error {
	workers := sync.Pool{New: func() any { return s.newWorker() }}
	srv := &dns.Server{
		Listener: s.tcp, Net: "tcp", MaxTCPQueries: -1,
		ReadTimeout: s.opt.ReadTimeout, IdleTimeout: func() time.Duration { return s.opt.IdleTimeout },
		DecorateReader: func(r dns.Reader) dns.Reader { return shortReader{r} },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
			worker := workers.Get().(*worker)
			defer workers.Put(worker)
			worker.serve(w, m)
		}),
	}
	done := make(chan error, 1)
	go func() { done <- srv.ActivateAndServe() }()
	select {
	case err := <-done:
		return fmt.Errorf("serve DNS over TCP on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	_ = srv.ShutdownContext(ending) // who is still there then is cut off
	s.tcp.closeAll()
	<-done
	return ctx.Err()
}

func (w *worker) serve(rw dns.ResponseWriter, m *dns.Msg) {
	start := time.Now()
	out := w.answerMsg(m)
	var from netip.Addr
	if a, ok := rw.RemoteAddr().(*net.TCPAddr); ok {
		from = a.AddrPort().Addr()
	}
	if _, err := rw.Write(out); err != nil {
		rw.Close() // it does not read: nothing that follows would be in step
	}
	w.s.opt.Meter.count(exchange{q: &w.q, in: m.Len(), out: len(out), header: out, tcp: true, from: from, took: time.Since(start)})
}

func (w *worker) answerMsg(m *dns.Msg) (out []byte) {
	defer w.guard(&out)
	if err := w.q.FromMsg(m); err != nil {
		rcode := dns.RcodeFormatError
		if m.Opcode != dns.OpcodeQuery {
			rcode = dns.RcodeNotImplemented
		}
		return zone.Refuse(nil, &w.q, rcode)
	}
	// A large answer must not stay with the pool.
	if cap(w.out) > maxQuery {
		w.out = nil
	}
	w.out = w.s.opt.Zone.Answer(w.out, &w.q, dns.MaxMsgSize, w.rnd.Uint64())
	return w.out
}

// shortReader reads no message that is longer than a question can be, so that
// nobody makes us keep 64 KiB for one that never comes.
type shortReader struct{ dns.Reader }

// ReadTCP implements dns.Reader.
func (r shortReader) ReadTCP(c net.Conn, timeout time.Duration) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > maxQuery {
		return nil, fmt.Errorf("query has %d octets, at most %d are read", n, maxQuery)
	}
	m := make([]byte, n)
	_, err := io.ReadFull(c, m)
	return m, err
}

package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a netlink socket. It is safe for concurrent use.
type Conn struct {
	mu  sync.Mutex // guards seq, buf and the conversation on fd
	fd  int
	pid uint32
	seq uint32
	buf []byte
}

// Request is one message to the kernel. Body is the family's header with the
// attributes behind it.
type Request struct {
	Type  uint16 // RTM_…, or subsystem and message of nfnetlink
	Flags uint16 // NLM_F_… besides NLM_F_REQUEST
	Body  []byte
}

const (
	bufferBytes = 4 << 20
	chunkBytes  = 64 << 10 // sent at once
	answerTime  = 10       // seconds; the kernel answers at once or never
)

// Dial opens a socket of a protocol (NETLINK_…) in the namespace. The kernel is asked to check requests
// strictly, so that it honours filters of dumps (since 4.20) and refuses what
// it does not know, and to explain its refusals.
func (s Space) Dial(protocol int) (*Conn, error) {
	c := &Conn{buf: make([]byte, 256<<10)}
	err := s.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := c.setup(); err != nil {
		unix.Close(c.fd)
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return c, nil
}

func (c *Conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.pid = sa.(*unix.SockaddrNetlink).Pid
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, option, 1); err != nil {
			return err
		}
	}
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, option, bufferBytes); err != nil {
			return err
		}
	}
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTime})
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// PortID is the sender that notifications of our own changes carry.
func (c *Conn) PortID() uint32 { return c.pid }

// Batch sends all requests in order, many per system call, and returns an error
// for each, nil where it was carried out.
func (c *Conn) Batch(requests []Request) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, len(requests))
	for start := 0; start < len(requests); {
		var packet []byte
		first, end := c.seq+1, start
		for end < len(requests) && (end == start || len(packet)+len(requests[end].Body)+unix.SizeofNlMsghdr <= chunkBytes) {
			c.seq++
			last := end+1 == len(requests) || len(packet)+len(requests[end].Body)+len(requests[end+1].Body)+2*unix.SizeofNlMsghdr > chunkBytes
			packet = c.append(packet, requests[end], last)
			end++
		}
		if err := c.converse(packet, first, errs[start:end]); err != nil {
			for i := start; i < len(errs); i++ {
				errs[i] = err
			}
			return errs
		}
		start = end
	}
	return errs
}

// append adds a message. Only the last of a packet asks for an answer: the
// kernel works through a packet in order and reports errors without being asked.
func (c *Conn) append(packet []byte, r Request, ack bool) []byte {
	flags := r.Flags | unix.NLM_F_REQUEST
	if ack {
		flags |= unix.NLM_F_ACK
	}
	packet = binary.NativeEndian.AppendUint32(packet, uint32(unix.SizeofNlMsghdr+len(r.Body)))
	packet = binary.NativeEndian.AppendUint16(packet, r.Type)
	packet = binary.NativeEndian.AppendUint16(packet, flags)
	packet = binary.NativeEndian.AppendUint32(packet, c.seq)
	packet = binary.NativeEndian.AppendUint32(packet, c.pid)
	packet = append(packet, r.Body...)
	for len(packet)%unix.NLMSG_ALIGNTO != 0 {
		packet = append(packet, 0)
	}
	return packet
}

// converse sends a packet whose messages are numbered from first and collects
// the answers into errs. An error of its own means that the rest is unknown.
func (c *Conn) converse(packet []byte, first uint32, errs []error) error {
	if err := unix.Sendto(c.fd, packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink: %w", err)
	}
	for {
		done := false
		err := c.receive(func(m message) error {
			i := m.seq - first
			if m.typ != unix.NLMSG_ERROR || i >= uint32(len(errs)) {
				return nil // left over from an earlier conversation
			}
			errs[i] = m.failure()
			done = done || int(i) == len(errs)-1
			return nil
		})
		if err != nil || done {
			return err
		}
	}
}

// errInterrupted says that the kernel's table changed during a dump.
var errInterrupted = errors.New("dump interrupted")

// Dump calls each with the type and body of every message that answers r. A
// dump that was disturbed by a change starts over, after a call of begin.
func (c *Conn) Dump(r Request, begin func(), each func(typ uint16, body []byte) error) error {
	const tries = 20
	var err error
	for range tries {
		begin()
		if err = c.dumpOnce(r, each); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

func (c *Conn) dumpOnce(r Request, each func(typ uint16, body []byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	r.Flags |= unix.NLM_F_DUMP
	if err := unix.Sendto(c.fd, c.append(nil, r, false), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink: %w", err)
	}
	var failed error
	for done := false; !done; {
		err := c.receive(func(m message) error {
			if m.seq != c.seq {
				return nil
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				failed = errors.Join(failed, errInterrupted)
			}
			switch m.typ {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				done = true
				failed = errors.Join(failed, m.failure())
			default:
				failed = errors.Join(failed, each(m.typ, m.body))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return failed
}

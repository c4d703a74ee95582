package nl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Event is a notification from the kernel.
type Event struct {
	Type   uint16
	Sender uint32 // port of the socket whose request caused it, 0 for the kernel
	Body   []byte
}

// Watch calls each for every notification of protocol's groups until ctx ends,
// and lost when some may have been missed: once at the start, and whenever the
// socket's buffer overflowed.
func (s Space) Watch(ctx context.Context, protocol int, groups []uint32, each func(Event), lost func()) error {
	c, err := netlink.Dial(protocol, &netlink.Config{NetNS: s.fd})
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer c.Close()
	if err := c.SetReadBuffer(bufferBytes); err != nil {
		return fmt.Errorf("size netlink buffer: %w", err)
	}
	for _, g := range groups {
		if err := c.JoinGroup(g); err != nil {
			return fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	lost() // what happened before the groups were joined is unknown
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return fmt.Errorf("receive netlink: %w", err)
		}
		for _, m := range messages {
			each(Event{Type: uint16(m.Header.Type), Sender: m.Header.PID, Body: m.Data})
		}
	}
}

package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// conn is what a target needs to read and change tables of one name.
type conn struct {
	space  nl.Space
	name   string         // of the tables
	reader *nl.Conn       // nil until first used
	writer *nftables.Conn // nil until first used
	port   atomic.Uint32  // of writer's socket
}

// Close releases the target's sockets; they are opened again when needed.
func (t *conn) Close() error {
	var errs []error
	if t.reader != nil {
		errs = append(errs, t.reader.Close())
		t.reader = nil
	}
	return errors.Join(append(errs, t.closeWriter())...)
}

func (t *conn) closeWriter() error {
	if t.writer == nil {
		return nil
	}
	err := t.writer.CloseLasting()
	t.writer = nil
	return err
}

func (t *conn) open() error {
	var err error
	if t.reader == nil {
		if t.reader, err = t.space.Dial(unix.NETLINK_NETFILTER); err != nil {
			return err
		}
	}
	if t.writer != nil {
		return nil
	}
	options := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(size, t.remember)}
	if fd := t.space.Fd(); fd != 0 {
		options = append(options, nftables.WithNetNSFd(fd))
	}
	if t.writer, err = nftables.New(options...); err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	return nil
}

// size makes room for one transaction with all elements of 5,000 nodes: it has
// to be sent in one piece, and its answers come in one go.
func size(c *netlink.Conn) error {
	const bytes = 64 << 20
	return errors.Join(c.SetWriteBuffer(bytes), c.SetReadBuffer(bytes))
}

// remember notes the port that notifications of our own changes carry.
func (t *conn) remember(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sa unix.Sockaddr
	if cerr := raw.Control(func(fd uintptr) { sa, err = unix.Getsockname(int(fd)) }); cerr != nil || err != nil {
		return errors.Join(cerr, err)
	}
	t.port.Store(sa.(*unix.SockaddrNetlink).Pid)
	return nil
}

// Watch implements reconcile.Watcher.
func (t *conn) Watch(ctx context.Context, wake func()) error {
	return t.space.Watch(ctx, unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, func(e nl.Event) {
		if e.Sender != t.port.Load() && len(e.Body) >= sizeofNfGenMsg && e.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN && inTable(e.Body, t.name) {
			wake()
		}
	}, wake)
}

// counters reads the counters of tables, beside the loop, which owns t.reader.
func (t *conn) counters(tables []table) (map[string]Counter, error) {
	c, err := t.space.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	out := map[string]Counter{}
	for _, x := range tables {
		counters, err := readCounters(c, x.id())
		if err != nil {
			return nil, err
		}
		maps.Copy(out, counters)
	}
	return out, nil
}

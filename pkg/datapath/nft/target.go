// Package nft makes the tables `inet clustermesh` and `arp clustermesh` what
// the plan says: rules that check what pods send and what comes out of the
// tunnel, masquerading to outside of the mesh, and the sets that they look
// things up in. Whatever is in these tables is ours. It decides nothing.
package nft

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Target holds the rules, as one row, and the elements of all sets. They are
// one target because they change together: new rules and a set of a new shape
// come with its elements in one transaction, so there is no moment without.
type Target struct {
	space  nl.Space
	reader *nl.Conn       // nil until first used
	writer *nftables.Conn // nil until first used
	port   atomic.Uint32  // of writer's socket
}

// New returns the target for the nft tables of a namespace.
func New(space nl.Space) *Target { return &Target{space: space} }

// Close releases the target's sockets; they are opened again when needed.
func (t *Target) Close() error {
	var errs []error
	if t.reader != nil {
		errs = append(errs, t.reader.Close())
		t.reader = nil
	}
	return errors.Join(append(errs, t.closeWriter())...)
}

func (t *Target) closeWriter() error {
	if t.writer == nil {
		return nil
	}
	err := t.writer.CloseLasting()
	t.writer = nil
	return err
}

func (t *Target) open() error {
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
func (t *Target) remember(c *netlink.Conn) error {
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

// List implements reconcile.Target.
func (t *Target) List(context.Context) (map[plan.FilterKey]plan.FilterRow, error) {
	if err := t.open(); err != nil {
		return nil, err
	}
	rows := map[plan.FilterKey]plan.FilterRow{}
	row, ok, err := readRow(t.reader)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if ok {
		rows[plan.FilterKey{}] = plan.FilterRow{Rules: row}
	}
	sets, err := readSets(t.reader, nftables.TableFamilyINet)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	for _, s := range sets {
		if !sameShape(s) {
			continue // replaced together with the rules, and filled anew
		}
		elements, err := readElements(t.reader, s.name)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		for _, k := range decode(plan.Set(s.name), elements) {
			rows[k] = plan.FilterRow{}
		}
	}
	return rows, nil
}

// Watch implements reconcile.Watcher.
func (t *Target) Watch(ctx context.Context, wake func()) error {
	return t.space.Watch(ctx, unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, func(e nl.Event) {
		if e.Sender != t.port.Load() && len(e.Body) >= sizeofNfGenMsg && e.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN && inTable(e.Body) {
			wake()
		}
	}, wake)
}

// Counters returns what has been dropped, by reason (drop_…).
func (t *Target) Counters(context.Context) (map[string]Counter, error) {
	c, err := t.space.Dial(unix.NETLINK_NETFILTER) // beside the loop, which owns t.reader
	if err != nil {
		return nil, err
	}
	defer c.Close()
	out := map[string]Counter{}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP} {
		counters, err := readCounters(c, family)
		if err != nil {
			return nil, err
		}
		for name, x := range counters {
			out[name] = x
		}
	}
	return out, nil
}

// Cleanup deletes both tables.
func Cleanup(_ context.Context, space nl.Space) error {
	t := New(space)
	if err := t.open(); err != nil {
		return err
	}
	return errors.Join(t.deleteTables(), t.Close())
}

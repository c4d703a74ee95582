// Package route makes routes, rules and neighbours what the plan says. Routes
// are ours by their table (7473), rules and neighbour proxies by their protocol
// (73), neighbours by being permanent on a device of ours. It decides nothing.
package route

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Routes is the target for our routing table, both families.
type Routes struct {
	socket
	foreign map[plan.RouteKey][]byte // as last listed: what it takes to delete them
}

// NewRoutes returns the target for the routes of a namespace.
func NewRoutes(space nl.Space) *Routes { return &Routes{socket: socket{space: space}} }

// List implements reconcile.Target. Whatever is in our table is returned, also
// what others put there: as Foreign in place of ours if it hides ours, else
// under a key of its own, so that it is deleted.
func (t *Routes) List(context.Context) (map[plan.RouteKey]plan.Route, error) {
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	names, err := c.Names()
	if err != nil {
		return nil, err
	}
	rows := map[plan.RouteKey]plan.Route{}
	foreign := map[plan.RouteKey][]byte{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		found, err := dump(c, family)
		if err != nil {
			return nil, t.broken(fmt.Errorf("list routes of table %d: %w", plan.Table, err))
		}
		for _, body := range found {
			key, row, ok := decode(body, names)
			if _, taken := rows[key]; ok && !taken {
				rows[key] = row
				continue
			}
			for key.Extra = 1; rows[key] != (plan.Route{}) || foreign[key] != nil; key.Extra++ {
			}
			rows[key], foreign[key] = plan.Route{Kind: plan.Foreign}, body
		}
	}
	t.foreign = foreign
	return rows, nil
}

// dump returns the body of every route of our table. The kernel filters.
func dump(c *nl.Conn, family byte) ([][]byte, error) {
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = family
	attrs := nl.Attrs(header)
	attrs.U32(unix.RTA_TABLE, plan.Table)
	var out [][]byte
	err := c.Dump(nl.Request{Type: unix.RTM_GETROUTE, Body: attrs}, func() { out = nil },
		func(_ uint16, body []byte) error {
			if tableOf(body) == plan.Table {
				out = append(out, append([]byte(nil), body...))
			}
			return nil
		})
	if errors.Is(err, unix.ENOENT) { // nobody ever put a route into the table
		return nil, nil
	}
	return out, err
}

// Apply implements reconcile.Target: sets first, so that a prefix that moves
// is never without a route.
func (t *Routes) Apply(_ context.Context, set map[plan.RouteKey]plan.Route, del []plan.RouteKey) map[plan.RouteKey]error {
	c, err := t.conn()
	if err != nil {
		return all(err, set, del)
	}
	failed := map[plan.RouteKey]error{}
	batch := batch[plan.RouteKey]{verb: "set route"}
	indexes := map[string]uint32{}
	for key, row := range set {
		index, err := indexOf(c, indexes, row.Dev)
		if err != nil {
			failed[key] = fmt.Errorf("set route %v: %w", key, err)
			continue
		}
		batch.add(key, nl.Request{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: encode(key, row, index)})
	}
	batch.send(c, failed)
	batch.verb, batch.gone = "delete route", []error{unix.ESRCH, unix.ENOENT}
	for _, key := range del {
		body := t.foreign[key]
		if key.Extra == 0 {
			body = encodeDelete(key)
		}
		batch.add(key, nl.Request{Type: unix.RTM_DELROUTE, Body: body})
	}
	batch.send(c, failed)
	return failed
}

// indexOf returns the index of a device, 0 for no device.
func indexOf(c *nl.Conn, known map[string]uint32, dev string) (uint32, error) {
	if dev == "" {
		return 0, nil
	}
	if i, ok := known[dev]; ok {
		return i, nil
	}
	i, err := c.Index(dev)
	if err == nil {
		known[dev] = i
	}
	return i, err
}

// Watch implements reconcile.Watcher. The kernel does not say that it dropped
// IPv4 routes because a device or an address went away, so changes of those
// count too.
func (t *Routes) Watch(ctx context.Context, wake func()) error {
	groups := []uint32{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR}
	return t.space.Watch(ctx, unix.NETLINK_ROUTE, groups, func(e nl.Event) {
		switch e.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if e.Sender != t.sender() && tableOf(e.Body) == plan.Table {
				wake()
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if linkChanged(e) {
				wake()
			}
		case unix.RTM_DELADDR:
			wake()
		}
	}, wake)
}

// linkChanged tells whether a device went in a way that takes routes along, or
// came up so that routes may be possible again. Pods' devices come up all the
// time, and their routes are set after that anyway.
func linkChanged(e nl.Event) bool {
	_, name, ok := nl.LinkName(e.Body)
	if !ok {
		return false
	}
	if e.Type == unix.RTM_DELLINK {
		return !pod(name)
	}
	flags, changed := nl.U32Of(e.Body[8:12]), nl.U32Of(e.Body[12:16])
	return changed&unix.IFF_UP != 0 && (!pod(name) || flags&unix.IFF_UP == 0)
}

// pod tells whether a device is that of a pod.
func pod(name string) bool {
	return name != plan.TunnelName && strings.HasPrefix(name, plan.IfPrefix)
}

// socket is a connection that opens when needed and again after an error.
type socket struct {
	space nl.Space
	c     *nl.Conn
	port  atomic.Uint32
}

func (s *socket) conn() (*nl.Conn, error) {
	if s.c != nil {
		return s.c, nil
	}
	c, err := s.space.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	s.c = c
	s.port.Store(c.PortID())
	return c, nil
}

// broken closes the connection, since an answer may still be on its way, and
// returns err.
func (s *socket) broken(err error) error {
	_ = s.Close()
	return err
}

// sender is the port that notifications of our own changes carry.
func (s *socket) sender() uint32 { return s.port.Load() }

// Close releases the socket; it is opened again when needed.
func (s *socket) Close() error {
	if s.c == nil {
		return nil
	}
	err := s.c.Close()
	s.c = nil
	return err
}

package main

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// ownTable is the routing table that the agent fills.
const ownTable = 7473

// routeWatch notes when the kernel's routes change: it tells us by itself, so
// that nothing is asked of it while the agent works.
type routeWatch struct {
	mu      sync.Mutex
	changed map[netip.Prefix]time.Time // guarded by mu: when a route was last added or replaced
	missed  bool                       // guarded by mu
}

// watchRoutes begins to watch; it ends with ctx.
func watchRoutes(ctx context.Context) (*routeWatch, error) {
	w := &routeWatch{changed: map[netip.Prefix]time.Time{}}
	watching := make(chan struct{})
	var once sync.Once
	go func() {
		_ = nl.Space{}.Watch(ctx, unix.NETLINK_ROUTE, []uint32{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}, w.note, func() {
			begun := false
			once.Do(func() { close(watching); begun = true })
			if !begun {
				w.mu.Lock()
				w.missed = true
				w.mu.Unlock()
			}
		})
	}()
	return w, wait(ctx, watching, 5*time.Second, "the kernel's route notifications")
}

func (w *routeWatch) note(e nl.Event) {
	now := time.Now()
	if p, ok := ownRoute(e); ok {
		w.mu.Lock()
		w.changed[p] = now
		w.mu.Unlock()
	}
}

// ownRoute is the destination of a new route in the agent's table.
func ownRoute(e nl.Event) (p netip.Prefix, ok bool) {
	const header = unix.SizeofRtMsg
	if e.Type != unix.RTM_NEWROUTE || len(e.Body) < header {
		return p, false
	}
	bits, table := int(e.Body[1]), uint32(0)
	var to netip.Addr
	for b := e.Body[header:]; len(b) >= 4; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			break
		}
		switch binary.NativeEndian.Uint16(b[2:]) {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(b[4:size])
		case unix.RTA_TABLE:
			table = binary.NativeEndian.Uint32(b[4:])
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return netip.PrefixFrom(to, bits), table == ownTable && to.IsValid()
}

// since is when the last of some routes changed; ok tells that all of them did
// so after start.
func (w *routeWatch) since(start time.Time, routes []netip.Prefix) (last time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range routes {
		at := w.changed[p]
		if at.Before(start) {
			return last, false
		}
		if at.After(last) {
			last = at
		}
	}
	return last, true
}

func (w *routeWatch) lost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.missed
}

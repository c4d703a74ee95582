package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// ReadUnderlay returns the addresses of the node's own devices, and the
// smallest MTU among the devices that hold one of the node's addresses. Where
// the node's address is on lo, as in routed fabrics, all devices count.
func ReadUnderlay(_ context.Context, space nl.Space, node model.Addrs) (plan.Underlay, error) {
	h, err := space.Handle()
	if err != nil {
		return plan.Underlay{}, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return plan.Underlay{}, fmt.Errorf("list devices: %w", err)
	}
	addrs, err := h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return plan.Underlay{}, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	var out plan.Underlay
	var anyMTU int
	for _, a := range addrs {
		l := byIndex[a.LinkIndex]
		p, ok := prefixOf(a)
		if l == nil || !ok || !carries(l, p.Addr()) {
			continue
		}
		out.Addrs = append(out.Addrs, plan.LocalAddr{Prefix: p, Dev: l.Attrs().Name})
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		anyMTU = smaller(anyMTU, l.Attrs().MTU)
		if p.Addr() == node.V4 || p.Addr() == node.V6 {
			out.MTU = smaller(out.MTU, l.Attrs().MTU)
		}
	}
	if out.MTU == 0 {
		out.MTU = anyMTU
	}
	return out, nil
}

// carries tells whether a device and address may lead to other nodes.
func carries(l netlink.Link, a netip.Addr) bool {
	attrs := l.Attrs()
	return !strings.HasPrefix(attrs.Name, plan.IfPrefix) && attrs.Flags&net.FlagUp != 0 &&
		!a.IsLinkLocalUnicast() && !a.IsLoopback()
}

func smaller(a, b int) int {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// WatchUnderlay wakes after changes of devices and addresses, until ctx ends.
func WatchUnderlay(ctx context.Context, space nl.Space, wake func()) error {
	groups := []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	return space.Watch(ctx, unix.NETLINK_ROUTE, groups, func(e nl.Event) {
		if _, name, ok := nl.LinkName(e.Body); ok && (e.Type == unix.RTM_NEWLINK || e.Type == unix.RTM_DELLINK) && strings.HasPrefix(name, plan.IfPrefix) {
			return // pods come and go
		}
		wake()
	}, wake)
}

// Cleanup deletes every device of ours, those of pods included.
func Cleanup(_ context.Context, space nl.Space) error {
	h, err := space.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if !ours(l) {
			continue
		}
		if err := remove(h, name); err != nil {
			return fmt.Errorf("delete device %s: %w", name, err)
		}
	}
	return nil
}

// ours tells our devices from others whose names happen to begin alike: only
// veths and VXLANs can be ours.
func ours(l netlink.Link) bool {
	name := l.Attrs().Name
	return name == plan.TunnelName || l.Type() == "veth" && len(name) == len(plan.IfPrefix)+11 && strings.HasPrefix(name, plan.IfPrefix)
}

// Package link makes the devices and node-wide settings that the plan asks for.
// A device is ours if its name begins with "cm". It knows nothing of routes.
package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Tunnels is the target for the collect-metadata VXLAN device, with its
// addresses. The device is changed in place wherever the kernel can; only a
// device of another type, port or mode is replaced.
type Tunnels struct {
	space nl.Space
	h     *netlink.Handle // nil until first used
}

// NewTunnels returns the target for the tunnel device of a namespace.
func NewTunnels(space nl.Space) *Tunnels { return &Tunnels{space: space} }

// Close releases the target's socket.
func (t *Tunnels) Close() error {
	if t.h != nil {
		t.h.Close()
		t.h = nil
	}
	return nil
}

func (t *Tunnels) handle() (*netlink.Handle, error) {
	if t.h != nil {
		return t.h, nil
	}
	var err error
	t.h, err = t.space.Handle()
	return t.h, err
}

// List implements reconcile.Target.
func (t *Tunnels) List(context.Context) (map[string]plan.Tunnel, error) {
	h, err := t.handle()
	if err != nil {
		return nil, err
	}
	l, err := find(h, plan.TunnelName)
	if l == nil || err != nil {
		return map[string]plan.Tunnel{}, err
	}
	addrs, extra, err := addresses(h, l)
	if err != nil {
		return nil, err
	}
	if !usable(l) || l.Attrs().Flags&net.FlagUp == 0 || len(extra) > 0 {
		return map[string]plan.Tunnel{plan.TunnelName: {}}, nil // equal to nothing that is ever wanted
	}
	row := plan.Tunnel{Port: uint16(l.(*netlink.Vxlan).Port), MTU: l.Attrs().MTU, Addrs: addrs}
	copy(row.MAC[:], l.Attrs().HardwareAddr)
	return map[string]plan.Tunnel{plan.TunnelName: row}, nil
}

// Apply implements reconcile.Target.
func (t *Tunnels) Apply(_ context.Context, set map[string]plan.Tunnel, del []string) map[string]error {
	failed := map[string]error{}
	h, err := t.handle()
	for name, row := range set {
		if err == nil {
			err = ensure(h, name, row)
		}
		if err != nil {
			failed[name] = fmt.Errorf("set device %s: %w", name, err)
		}
	}
	for _, name := range del {
		if err == nil {
			err = remove(h, name)
		}
		if err != nil {
			failed[name] = fmt.Errorf("delete device %s: %w", name, err)
		}
	}
	return failed
}

// Watch implements reconcile.Watcher.
func (t *Tunnels) Watch(ctx context.Context, wake func()) error {
	groups := []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	var index uint32
	return t.space.Watch(ctx, unix.NETLINK_ROUTE, groups, func(e nl.Event) {
		switch e.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if i, name, ok := nl.LinkName(e.Body); ok && (name == plan.TunnelName || i == index) {
				index = i
				wake()
			}
		default:
			if len(e.Body) >= unix.SizeofIfAddrmsg && nl.U32Of(e.Body[4:8]) == index {
				wake()
			}
		}
	}, wake)
}

// ensure makes device name as row says.
func ensure(h *netlink.Handle, name string, row plan.Tunnel) error {
	l, err := find(h, name)
	if err != nil {
		return err
	}
	if l != nil && (!usable(l) || l.(*netlink.Vxlan).Port != int(row.Port)) {
		if err := h.LinkDel(l); err != nil {
			return fmt.Errorf("replace a device of another kind: %w", err)
		}
		l = nil
	}
	if l == nil {
		if l, err = create(h, name, row); err != nil {
			return err
		}
	}
	return adjust(h, l, row)
}

func create(h *netlink.Handle, name string, row plan.Tunnel) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, row.MTU, row.MAC[:]
	err := h.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs,
		FlowBased: true, // VNI and remote come from the route
		Learning:  false,
		Port:      int(row.Port),
		// A lightweight-tunnel route sends UDP over IPv6 with checksum 0,
		// which is dropped silently without this.
		UDP6ZeroCSumRx: true,
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("add vxlan: UDP port %d is taken by another device or program: %w", row.Port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("add vxlan: %w", err)
	}
	return find(h, name)
}

// adjust changes what can be changed while packets flow.
func adjust(h *netlink.Handle, l netlink.Link, row plan.Tunnel) error {
	a := l.Attrs()
	if a.MTU != row.MTU {
		if err := h.LinkSetMTU(l, row.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", row.MTU, err)
		}
	}
	if a.HardwareAddr.String() != net.HardwareAddr(row.MAC[:]).String() {
		if err := h.LinkSetHardwareAddr(l, row.MAC[:]); err != nil {
			return fmt.Errorf("set address %v: %w", net.HardwareAddr(row.MAC[:]), err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return adjustAddresses(h, l, row.Addrs)
}

func adjustAddresses(h *netlink.Handle, l netlink.Link, wanted model.Addrs) error {
	have, extra, err := addresses(h, l)
	if err != nil {
		return err
	}
	for _, ip := range wanted.All() {
		if ip == have.V4 || ip == have.V6 {
			continue
		}
		n := &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
		// nodad: there is nobody on the tunnel to ask, and a tentative
		// address cannot be a route's source.
		if err := h.AddrReplace(l, &netlink.Addr{IPNet: n, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("add address %v: %w", ip, err)
		}
	}
	for _, ip := range have.All() {
		if ip != wanted.V4 && ip != wanted.V6 {
			n := &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
			extra = append(extra, netlink.Addr{IPNet: n})
		}
	}
	for _, x := range extra {
		if p, ok := prefixOf(x); ok && (p.Addr() == wanted.V4 || p.Addr() == wanted.V6) && p.IsSingleIP() {
			continue
		}
		if err := h.AddrDel(l, &netlink.Addr{IPNet: x.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("delete address %v: %w", x.IPNet, err)
		}
	}
	return nil
}

// addresses returns the device's host addresses, at most one per family, and
// all others. Link-local ones do not count: the kernel makes them.
func addresses(h *netlink.Handle, l netlink.Link) (model.Addrs, []netlink.Addr, error) {
	var out model.Addrs
	var extra []netlink.Addr
	list, err := h.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return out, nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range list {
		p, ok := prefixOf(a)
		if !ok || p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() {
			continue
		}
		before := out
		if p.IsSingleIP() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			out = out.Add(p.Addr())
		}
		if out == before {
			extra = append(extra, a)
		}
	}
	return out, extra, nil
}

func prefixOf(a netlink.Addr) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

// usable tells whether l has all attributes that cannot be changed later.
func usable(l netlink.Link) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && v.FlowBased && !v.Learning && v.UDP6ZeroCSumRx && !v.GBP && v.SrcAddr == nil && v.VtepDevIndex == 0
}

// find returns the device of that name, nil if there is none.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return l, nil
}

func remove(h *netlink.Handle, name string) error {
	l, err := find(h, name)
	if l == nil || err != nil {
		return err
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

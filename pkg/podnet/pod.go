package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// setUpPod gives the pod its addresses, its next hops and their neighbours. All
// is there before the pod starts, so the pod never has to ask for anything: no
// ARP, no ND, no DAD, no router advertisement.
func setUpPod(pod model.Pod, ns netns.NsHandle, mtu MTU) (err error) {
	if err := setSysctls(ns, podSysctls(pod)); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(pod.Key.IfName)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", pod.Key.IfName, err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in the pod: %w", err)
	}
	if err := errors.Join(h.LinkSetUp(lo), h.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set lo and %s in the pod up: %w", pod.Key.IfName, err)
	}
	for _, ip := range pod.IPs.All() {
		if err := addFamily(h, link.Attrs().Index, ip, mtu.Route); err != nil {
			return fmt.Errorf("in the pod: %w", err)
		}
	}
	return nil
}

// podSysctls: some runtimes switch IPv6 off in every new namespace.
func podSysctls(pod model.Pod) []sysctl {
	if !pod.IPs.V6.IsValid() {
		return nil
	}
	v6 := "ipv6/conf/" + pod.Key.IfName + "/"
	return []sysctl{{"ipv6/conf/lo/disable_ipv6", "0"}, {v6 + "disable_ipv6", "0"},
		{v6 + "accept_ra", "0"}, {v6 + "accept_dad", "0"}}
}

// gateway is the pod's next hop for the family of ip.
func gateway(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return GatewayV4
	}
	return GatewayV6
}

func addFamily(h *netlink.Handle, index int, ip netip.Addr, mtu int) error {
	gw := gateway(ip)
	addr := &netlink.Addr{IPNet: hostNet(ip), LinkIndex: index}
	if ip.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(nil, addr); err != nil {
		return fmt.Errorf("add address %s: %w", ip, err)
	}
	if err := h.NeighSet(&netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: gw.AsSlice(),
		HardwareAddr: net.HardwareAddr(HostMAC[:])}); err != nil {
		return fmt.Errorf("set neighbour %s: %w", gw, err)
	}
	route := &netlink.Route{LinkIndex: index, Dst: defaultNet(ip), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), MTU: mtu}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add route default via %s: %w", gw, err)
	}
	return nil
}

// hostNet is ip as a network of one address.
func hostNet(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

// defaultNet is the network of all addresses of ip's family.
func defaultNet(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, ip.BitLen()/8), Mask: net.CIDRMask(0, ip.BitLen())}
}

// checkPod compares what the pod has with what it was given.
func checkPod(pod model.Pod, ns netns.NsHandle) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(pod.Key.IfName)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", pod.Key.IfName, err)
	}
	if err := checkLink(link, pod.MAC); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	var errs []error
	for _, ip := range pod.IPs.All() {
		errs = append(errs, checkAddress(h, link, ip), checkRoute(h, link, ip), checkNeighbour(h, link, ip))
	}
	return errors.Join(errs...)
}

func checkLink(link netlink.Link, mac model.MAC) error {
	a := link.Attrs()
	if a.Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s is down", a.Name)
	}
	if want := net.HardwareAddr(mac[:]); a.HardwareAddr.String() != want.String() {
		return fmt.Errorf("%s has hardware address %s, not %s", a.Name, a.HardwareAddr, want)
	}
	return nil
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func checkAddress(h *netlink.Handle, link netlink.Link, ip netip.Addr) error {
	addrs, err := h.AddrList(link, family(ip))
	if err != nil {
		return fmt.Errorf("list addresses in the pod: %w", err)
	}
	for _, a := range addrs {
		if a.IPNet.String() == hostNet(ip).String() {
			return nil
		}
	}
	return fmt.Errorf("%s in the pod lacks address %s", link.Attrs().Name, ip)
}

func checkRoute(h *netlink.Handle, link netlink.Link, ip netip.Addr) error {
	routes, err := h.RouteList(link, family(ip))
	if err != nil {
		return fmt.Errorf("list routes in the pod: %w", err)
	}
	for _, r := range routes {
		isDefault := r.Dst == nil || r.Dst.String() == defaultNet(ip).String()
		if isDefault && r.Gw.Equal(gateway(ip).AsSlice()) {
			return nil
		}
	}
	return fmt.Errorf("the pod lacks the route default via %s dev %s", gateway(ip), link.Attrs().Name)
}

func checkNeighbour(h *netlink.Handle, link netlink.Link, ip netip.Addr) error {
	list, err := h.NeighList(link.Attrs().Index, family(ip))
	if err != nil {
		return fmt.Errorf("list neighbours in the pod: %w", err)
	}
	for _, n := range list {
		if n.IP.Equal(gateway(ip).AsSlice()) && n.State&unix.NUD_PERMANENT != 0 {
			return nil
		}
	}
	return fmt.Errorf("the pod lacks the permanent neighbour %s", gateway(ip))
}

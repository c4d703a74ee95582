package podnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

const (
	hostIfPrefix = "cm"
	hostIfDigits = 11
	maxAlias     = 255 // IFALIASZ without the end
)

var hostIfPattern = regexp.MustCompile(fmt.Sprintf("^%s[0-9a-f]{%d}$", hostIfPrefix, hostIfDigits))

// createVeth makes the veth with the pod's end right inside its namespace, so
// that no other process on the node ever sees that end.
func (s *Server) createVeth(pod model.Pod, ns netns.NsHandle, mtu MTU) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = pod.HostIf
	attrs.HardwareAddr = net.HardwareAddr(HostMAC[:])
	attrs.MTU = mtu.Device
	veth := netlink.NewVeth(attrs)
	veth.PeerName = pod.Key.IfName
	veth.PeerHardwareAddr = net.HardwareAddr(pod.MAC[:])
	veth.PeerNamespace = netlink.NsFd(ns)
	veth.PeerMTU = uint32(mtu.Device)
	err := s.host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		return refuse(api.CodeEnvironment, "call DEL first, or choose another CNI_IFNAME",
			"container %s has an interface %s already (or the node has %s)", pod.Key.ContainerID, pod.Key.IfName, pod.HostIf)
	}
	if err != nil {
		return fmt.Errorf("create veth %s with %s in the pod: %w", pod.HostIf, pod.Key.IfName, err)
	}
	return nil
}

// setUpHost prepares the node's end and sets it up. Nothing gets through
// before the pod's row is programmed: its source check drops everything.
func (s *Server) setUpHost(pod model.Pod) error {
	if err := setSysctls(s.hostNS, hostSysctls(pod)); err != nil {
		return err
	}
	link, err := s.host.LinkByName(pod.HostIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", pod.HostIf, err)
	}
	alias := pod.Namespace + "/" + pod.Name
	if err := s.host.LinkSetAlias(link, alias[:min(len(alias), maxAlias)]); err != nil {
		return fmt.Errorf("set alias of %s: %w", pod.HostIf, err)
	}
	if err := s.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", pod.HostIf, err)
	}
	return nil
}

// hostSysctls: a pod is neither a router nor somebody to answer ARP or ND for.
// rp_filter comes on top of the exact source check in nftables and costs
// nothing, since policy routing makes the kernel look up the source anyway.
// Without DAD the link-local address, which ICMPv6 errors to the pod may come
// from, is usable at once.
func hostSysctls(pod model.Pod) []sysctl {
	v4, v6 := "ipv4/conf/"+pod.HostIf+"/", "ipv6/conf/"+pod.HostIf+"/"
	var out []sysctl
	if pod.IPs.V4.IsValid() {
		out = append(out, sysctl{v4 + "forwarding", "1"}, sysctl{v4 + "rp_filter", "1"},
			sysctl{v4 + "proxy_arp", "0"}, sysctl{v4 + "accept_redirects", "0"}, sysctl{v4 + "send_redirects", "0"})
	}
	if pod.IPs.V6.IsValid() {
		out = append(out, sysctl{v6 + "disable_ipv6", "0"}, sysctl{v6 + "forwarding", "1"}, sysctl{v6 + "accept_ra", "0"},
			sysctl{v6 + "accept_dad", "0"}, sysctl{v6 + "proxy_ndp", "0"}, sysctl{v6 + "accept_redirects", "0"})
	} else if _, err := os.Stat(ipv6Sysctls); err == nil {
		out = append(out, sysctl{v6 + "disable_ipv6", "1"}) // the node must not listen to router advertisements here
	}
	return out
}

// deleteVeth deletes the node's end, and the pod's end with it. It is no error
// if it is gone already.
func deleteVeth(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if link.Type() != "veth" {
		return fmt.Errorf("delete %s: it is a %s, not a veth of ours", name, link.Type())
	}
	if err := h.LinkDel(link); err != nil && !isGone(err) {
		return fmt.Errorf("delete veth %s: %w", name, err)
	}
	return nil
}

func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// listVeths returns the names of all our veths.
func listVeths(h *netlink.Handle) (map[string]bool, error) {
	links, err := h.LinkList()
	for range 20 { // pods that come and go disturb the dump
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		links, err = h.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := map[string]bool{}
	for _, l := range links {
		if l.Type() == "veth" && hostIfPattern.MatchString(l.Attrs().Name) {
			out[l.Attrs().Name] = true
		}
	}
	return out, nil
}

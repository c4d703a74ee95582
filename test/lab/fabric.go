package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// FabricNetns names the network namespace of the wires between nodes. It has
// the gateways' addresses, so it can also play a host outside the mesh.
func (l *Lab) FabricNetns() string { return l.cfg.Name + "-fabric" }

// bridgeName is the wire cluster i hangs on.
func (c Config) bridgeName(i int) string {
	if c.Fabric == Routed {
		return "br-" + c.Clusters[i-1].Name
	}
	return "br0"
}

// ensureFabric makes the fabric's namespace, its bridges and their addresses.
func (l *Lab) ensureFabric() error {
	if !netnsExists(l.FabricNetns()) {
		if err := newNetns(l.FabricNetns()); err != nil {
			return err
		}
	}
	return inNetns(l.FabricNetns(), func() error {
		forward := "0"
		if l.cfg.Fabric == Routed {
			forward = "1"
		}
		// The bridges are wires: netfilter must not see what crosses them.
		err := sysctl(map[string]string{
			"net/bridge/bridge-nf-call-iptables":  "0",
			"net/bridge/bridge-nf-call-ip6tables": "0",
			"net/bridge/bridge-nf-call-arptables": "0",
			"net/ipv4/ip_forward":                 forward,
			"net/ipv6/conf/all/forwarding":        forward,
			"net/ipv4/conf/all/send_redirects":    "0",
		})
		if err != nil {
			return err
		}
		if _, err := linkUp("lo"); err != nil {
			return err
		}
		for i := range l.cfg.Clusters {
			if err := ensureBridge(l.cfg.bridgeName(i+1), l.cfg.gatewayPrefixes(i+1)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c Config) gatewayPrefixes(i int) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, addr := range c.gateway(i).List() {
		prefixes = append(prefixes, c.onLink(addr))
	}
	return prefixes
}

func ensureBridge(name string, addrs []netip.Prefix) error {
	if _, err := netlink.LinkByName(name); err != nil {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			return fmt.Errorf("add bridge %s: %w", name, err)
		}
	}
	if err := sysctl(map[string]string{"net/ipv6/conf/" + name + "/accept_ra": "0"}); err != nil {
		return err
	}
	link, err := linkUp(name)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := addAddr(link, addr); err != nil {
			return err
		}
	}
	return nil
}

// plug connects the node: eth0 in its namespace, a port named like it in the
// fabric.
func (n *Node) plug() error {
	c := n.cluster
	ns, err := netns.GetFromName(n.Netns())
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", n.Netns(), err)
	}
	defer ns.Close()
	return inNetns(c.lab.FabricNetns(), func() error {
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: n.Name},
			PeerName:         "eth0",
			PeerHardwareAddr: n.mac(),
			PeerNamespace:    netlink.NsFd(int(ns)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add port %s: %w", n.Name, err)
		}
		bridge, err := netlink.LinkByName(c.lab.cfg.bridgeName(c.Index))
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", c.lab.cfg.bridgeName(c.Index), err)
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return fmt.Errorf("connect port %s: %w", n.Name, err)
		}
		_, err = linkUp(n.Name)
		return err
	})
}

// mac is the same after every boot, as a real machine's: with another one the
// neighbours would send to the old for half a minute.
func (n *Node) mac() net.HardwareAddr {
	sum := sha256.Sum256([]byte(n.Name))
	return append(net.HardwareAddr{0x0a}, sum[:5]...)
}

// configureNet sets what an administrator sets on a real node: forwarding,
// addresses, the default route.
func (n *Node) configureNet() error {
	cfg := n.cluster.lab.cfg
	return inNetns(n.Netns(), func() error {
		err := sysctl(map[string]string{
			"net/ipv4/ip_forward":             "1",
			"net/ipv6/conf/all/forwarding":    "1",
			"net/ipv6/conf/all/accept_ra":     "0",
			"net/ipv6/conf/default/accept_ra": "0",
			"net/ipv6/conf/eth0/accept_ra":    "0",
			"net/ipv4/conf/all/rp_filter":     "0",
			"net/ipv4/conf/default/rp_filter": "0",
			"net/ipv4/conf/eth0/rp_filter":    "0",
			// What the br_netfilter module sets on a real node; without it a
			// reply that stays on a CNI bridge is not translated back.
			"net/bridge/bridge-nf-call-iptables":  "1",
			"net/bridge/bridge-nf-call-ip6tables": "1",
		})
		if err != nil {
			return err
		}
		if _, err := linkUp("lo"); err != nil {
			return err
		}
		eth0, err := linkUp("eth0")
		if err != nil {
			return err
		}
		for _, addr := range n.Addrs.List() {
			if err := addAddr(eth0, cfg.onLink(addr)); err != nil {
				return err
			}
		}
		for _, gw := range cfg.gateway(n.cluster.Index).List() {
			route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice()}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("add default route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

// unplug frees the port's name now and not when the kernel gets round to the
// node's namespace.
func (l *Lab) unplug(port string) error {
	if !netnsExists(l.FabricNetns()) {
		return nil
	}
	return inNetns(l.FabricNetns(), func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return nil // no such port
		}
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("delete port %s: %w", port, err)
		}
		return nil
	})
}

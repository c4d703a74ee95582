package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// The address plan. i is the cluster's place (1..maxClusters), n the node's:
//
//	          IPv4                  IPv6
//	node      172.18.i.n            fd00:172:18::i:n (shared), fd00:172:18:i::n (routed)
//	fabric    172.18.0.1            fd00:172:18::1 (shared)
//	          172.18.i.254          fd00:172:18:i::fe (routed)
//	pods      10.(10+i).0.0/16      fd00:10:(10+i)::/56
//	services  10.(110+i).0.0/20     fd00:10:(110+i)::/112
//
// Labs do not clash: each has a fabric namespace of its own, and no route
// leaves it. (IPv6 groups read as decimal.)
const (
	maxClusters = 90
	maxNodes    = 99
)

// Addrs is an address per family; the zero one where the family is absent.
type Addrs struct {
	V4 netip.Addr `json:"v4"`
	V6 netip.Addr `json:"v6"`
}

// List returns the addresses there are, IPv4 first.
func (a Addrs) List() []netip.Addr {
	var list []netip.Addr
	for _, addr := range []netip.Addr{a.V4, a.V6} {
		if addr.IsValid() {
			list = append(list, addr)
		}
	}
	return list
}

// Primary is the address components are configured with where there can be only one.
func (a Addrs) Primary() netip.Addr { return a.List()[0] }

func podCIDRs(i int) (v4, v6 netip.Prefix) {
	return netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 10+i)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/56", 10+i))
}

func serviceCIDRs(i int) (v4, v6 netip.Prefix) {
	return netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/20", 110+i)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/112", 110+i))
}

func (s Stack) pick(v4, v6 netip.Prefix) []netip.Prefix {
	switch s {
	case IPv4:
		return []netip.Prefix{v4}
	case IPv6:
		return []netip.Prefix{v6}
	}
	return []netip.Prefix{v4, v6}
}

func (s Stack) pickAddrs(v4, v6 string) Addrs {
	var a Addrs
	if s != IPv6 {
		a.V4 = netip.MustParseAddr(v4)
	}
	if s != IPv4 {
		a.V6 = netip.MustParseAddr(v6)
	}
	return a
}

// nodeAddrs is the n-th address of cluster i.
func (c Config) nodeAddrs(i, n int) Addrs {
	v6 := fmt.Sprintf("fd00:172:18::%d:%d", i, n)
	if c.Fabric == Routed {
		v6 = fmt.Sprintf("fd00:172:18:%d::%d", i, n)
	}
	return c.Stack.pickAddrs(fmt.Sprintf("172.18.%d.%d", i, n), v6)
}

// gateway is what the nodes of cluster i have as their default route.
func (c Config) gateway(i int) Addrs {
	if c.Fabric == Routed {
		return c.Stack.pickAddrs(fmt.Sprintf("172.18.%d.254", i), fmt.Sprintf("fd00:172:18:%d::fe", i))
	}
	return c.Stack.pickAddrs("172.18.0.1", "fd00:172:18::1")
}

// onLink is addr with the length of the fabric's subnet.
func (c Config) onLink(addr netip.Addr) netip.Prefix {
	switch {
	case addr.Is6():
		return netip.PrefixFrom(addr, 64)
	case c.Fabric == Routed:
		return netip.PrefixFrom(addr, 24)
	}
	return netip.PrefixFrom(addr, 16)
}

// String joins the addresses by commas.
func (a Addrs) String() string {
	var list []string
	for _, addr := range a.List() {
		list = append(list, addr.String())
	}
	return strings.Join(list, ",")
}

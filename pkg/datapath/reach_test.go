package datapath_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// twoNodes is a node in each of two clusters, with a pod each.
func twoNodes(t testing.TB, backend model.Encap, east, west []string) (m *mesh, pods [2]*testPod) {
	t.Helper()
	f := newFabric(t)
	m = &mesh{backend: backend, prefixes: map[string][]netip.Prefix{
		"east": prefixes("10.1.0.0/16", "fd00:1::/48"),
		"west": prefixes("10.2.0.0/16", "fd00:2::/48"),
	}}
	a := m.join(t, f, "east", "e1", east, "10.1.3.0/24", "fd00:1:0:3::/64")
	b := m.join(t, f, "west", "w1", west, "10.2.5.0/24", "fd00:2:0:5::/64")
	pods[0] = a.pod(t, "client", "10.1.3.10", "fd00:1:0:3::10")
	pods[1] = b.pod(t, "server", "10.2.5.20", "fd00:2:0:5::20")
	m.program(t)
	return m, pods
}

// TestReach: pods reach pods of the other cluster with their own address as
// source, whatever is inside and whatever is outside.
func TestReach(t *testing.T) {
	v4e, v4w := "192.0.2.1/24", "192.0.2.2/24"
	v6e, v6w := "2001:db8::1/64", "2001:db8::2/64"
	for _, c := range []struct {
		name       string
		backend    model.Encap
		east, west []string
	}{
		{"direct over dual stack", model.EncapDirect, []string{v4e, v6e}, []string{v4w, v6w}},
		{"direct over IPv6", model.EncapDirect, []string{v6e}, []string{v6w}},
		{"vxlan over IPv4", model.EncapVXLAN, []string{v4e}, []string{v4w}},
		{"vxlan over IPv6", model.EncapVXLAN, []string{v6e}, []string{v6w}},
		{"auto over dual stack", model.EncapAuto, []string{v4e, v6e}, []string{v4w, v6w}},
		{"auto over IPv4", model.EncapAuto, []string{v4e}, []string{v4w}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, pods := twoNodes(t, c.backend, c.east, c.west)
			for i, from := range pods {
				to := pods[1-i]
				port := serve(t, to.space)
				reaches(t, from.space, to.row.IPs.V4, port, from.row.IPs.V4)
				reaches(t, from.space, to.row.IPs.V6, port, from.row.IPs.V6)
				node := m.nodes[i]
				own := serve(t, from.space)
				for _, ip := range to.row.IPs.All() {
					node.mustReach(t, ip, port)
				}
				for _, ip := range from.row.IPs.All() {
					node.mustReach(t, ip, own)
				}
			}
		})
	}
}

// mustReach checks that the node itself can open a connection. A node that has
// neither an address of the family nor a tunnel has nothing to speak from.
func (n *testNode) mustReach(t testing.TB, dst netip.Addr, port uint16) {
	t.Helper()
	if dst.Is4() && !n.row.Internal.V4.IsValid() && n.row.Encap == model.EncapDirect {
		return
	}
	if _, err := ask(n.space, dst, port); err != nil {
		t.Errorf("connect from node %v to %v: %v", n.row.Key, dst, err)
	}
}

// TestPathMTU: a pod that believes in 1500 bytes is told what fits the tunnel,
// so that streams get through.
func TestPathMTU(t *testing.T) {
	for _, c := range []struct{ name, east, west string }{
		{"over IPv4", "192.0.2.1/24", "192.0.2.2/24"},
		{"over IPv6", "2001:db8::1/64", "2001:db8::2/64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, pods := twoNodes(t, model.EncapVXLAN, []string{c.east}, []string{c.west})
			const size = 4 << 20
			for _, dst := range pods[1].row.IPs.All() {
				port, got := sink(t, pods[1].space)
				must(t, pods[0].space.Do(func() error {
					c, err := net.DialTimeout("tcp", netip.AddrPortFrom(dst, port).String(), probeTime)
					if err != nil {
						return err
					}
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(10 * time.Second))
					_, err = c.Write(make([]byte, size))
					return err
				}))
				if n := <-got; n != size {
					t.Errorf("to %v: %d of %d bytes arrived", dst, n, size)
				}
			}
		})
	}
}

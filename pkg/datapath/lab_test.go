// Package datapath_test joins nodes made of network namespaces by nothing but
// the plan and its targets, and sends real packets through the real kernel.
package datapath_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
)

// newSpace makes a network namespace that lives until the end of the test.
func newSpace(t testing.TB) nl.Space {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	made, err := netns.Get()
	must(t, err)
	must(t, netns.Set(home))
	runtime.UnlockOSThread()
	home.Close()
	t.Cleanup(func() { made.Close() })
	s := nl.SpaceFd(int(made))
	// Link-local addresses are there at once instead of seconds later.
	must(t, s.WriteSysctl("net/ipv6/conf/default/accept_dad", "0"))
	must(t, s.WriteSysctl("net/ipv6/conf/default/dad_transmits", "0"))
	must(t, s.WriteSysctl("net/ipv4/icmp_ratelimit", "0"))
	with(t, s, func(h *netlink.Handle) { must(t, h.LinkSetUp(device(t, h, "lo"))) })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func with(t testing.TB, s nl.Space, f func(h *netlink.Handle)) {
	t.Helper()
	h, err := s.Handle()
	must(t, err)
	defer h.Close()
	f(h)
}

func device(t testing.TB, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("find %s: %v", name, err)
	}
	return l
}

func addr(t testing.TB, s nl.Space, dev string, prefixes ...string) {
	t.Helper()
	with(t, s, func(h *netlink.Handle) {
		l := device(t, h, dev)
		must(t, h.LinkSetUp(l))
		for _, p := range prefixes {
			a, err := netlink.ParseAddr(p)
			must(t, err)
			a.Flags = unix.IFA_F_NODAD
			must(t, h.AddrAdd(l, a))
		}
	})
}

// veth joins two namespaces.
func veth(t testing.TB, a nl.Space, aName string, b nl.Space, bName string) {
	t.Helper()
	with(t, a, func(h *netlink.Handle) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.Fd())}))
		must(t, h.LinkSetUp(device(t, h, aName)))
	})
	with(t, b, func(h *netlink.Handle) { must(t, h.LinkSetUp(device(t, h, bName))) })
}

// fabric is the wire between nodes: a bridge in a namespace of its own.
type fabric struct {
	space nl.Space
	ports int
}

func newFabric(t testing.TB) *fabric {
	f := &fabric{space: newSpace(t)}
	with(t, f.space, func(h *netlink.Handle) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		must(t, h.LinkSetUp(device(t, h, "br0")))
	})
	return f
}

// plug gives a namespace an eth0 on the fabric.
func (f *fabric) plug(t testing.TB, s nl.Space, prefixes ...string) {
	t.Helper()
	f.ports++
	port := fmt.Sprintf("port%d", f.ports)
	veth(t, f.space, port, s, "eth0")
	with(t, f.space, func(h *netlink.Handle) { must(t, h.LinkSetMaster(device(t, h, port), device(t, h, "br0"))) })
	addr(t, s, "eth0", prefixes...)
}

// testPod is a pod: a namespace whose eth0 is wired as the CNI plugin does it.
type testPod struct {
	space nl.Space
	row   model.Pod
}

const (
	hostMAC   = "ee:ee:ee:ee:ee:ee"
	gatewayV4 = "169.254.1.1"
	gatewayV6 = "fe80::ecee:eeff:feee:eeee"
)

func newPod(t testing.TB, node nl.Space, name string, ips ...string) *testPod {
	t.Helper()
	p := &testPod{space: newSpace(t)}
	sum := sha256.Sum256([]byte(name + "/eth0"))
	p.row = model.Pod{Key: model.PodKey{ContainerID: name, IfName: "eth0"}, Namespace: "default", Name: name, HostIf: "cm" + hex.EncodeToString(sum[:])[:11]}
	veth(t, node, p.row.HostIf, p.space, "eth0")
	with(t, node, func(h *netlink.Handle) { must(t, h.LinkSetHardwareAddr(device(t, h, p.row.HostIf), hw(hostMAC))) })
	for _, ip := range ips {
		a := netip.MustParseAddr(ip)
		p.row.IPs = p.row.IPs.Add(a)
		addr(t, p.space, "eth0", netip.PrefixFrom(a, a.BitLen()).String())
	}
	with(t, p.space, func(h *netlink.Handle) {
		l := device(t, h, "eth0")
		copy(p.row.MAC[:], l.Attrs().HardwareAddr)
		for _, ip := range p.row.IPs.All() {
			gw, all := gatewayV4, "0.0.0.0/0"
			if ip.Is6() {
				gw, all = gatewayV6, "::/0"
			}
			must(t, h.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ipOf(gw), HardwareAddr: hw(hostMAC)}))
			must(t, h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netOf(all), Gw: ipOf(gw), Flags: int(netlink.FLAG_ONLINK)}))
		}
	})
	return p
}

// run executes a command in a namespace and returns what it prints.
func run(t testing.TB, s nl.Space, command string, args ...string) string {
	t.Helper()
	var out []byte
	err := s.Do(func() (err error) {
		out, err = exec.Command(command, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func ip(t testing.TB, s nl.Space, args ...string) string {
	t.Helper()
	return run(t, s, "ip", args...)
}

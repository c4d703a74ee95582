package datapath_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/gratuitous"
	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// balancerLab is two nodes and a client on one link, and two addresses that one
// of the nodes shall answer for.
type balancerLab struct {
	*mesh
	client nl.Space
	addrs  []netip.Addr
	pods   [2]*testPod
	fabric *fabric
}

func newBalancerLab(t *testing.T, backend model.Encap) *balancerLab {
	f := newFabric(t)
	l := &balancerLab{mesh: &mesh{backend: backend, services: true, prefixes: map[string][]netip.Prefix{"west": prefixes("10.1.0.0/16", "fd00:1::/48")}},
		addrs: []netip.Addr{netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::200")}, client: newSpace(t), fabric: f}
	n1 := l.join(t, f, "west", "n1", []string{"192.0.2.1/24", "2001:db8::1/64"}, "10.1.0.0/24", "fd00:1:0:1::/64")
	n2 := l.join(t, f, "west", "n2", []string{"192.0.2.2/24", "2001:db8::2/64"}, "10.1.1.0/24", "fd00:1:0:2::/64")
	l.pods = [2]*testPod{n1.pod(t, "a", "10.1.0.2", "fd00:1:0:1::2"), n2.pod(t, "b", "10.1.1.2", "fd00:1:0:2::2")}
	f.plug(t, l.client, "192.0.2.99/24", "2001:db8::99/64")
	return l
}

// announced is the plan of a node when owner answers for the addresses.
func (l *balancerLab) announced(t *testing.T, n *testNode, owner string) (*plan.Plan, plan.Announced) {
	t.Helper()
	u, err := link.ReadUnderlay(t.Context(), n.space, n.row.Internal)
	must(t, err)
	in := plan.AnnounceInput{Node: n.row.Key.Name, Elected: map[netip.Addr]lbpool.Elected{}, Underlay: u, Sources: n.row.Internal, MTU: 1400}
	for _, a := range l.addrs {
		in.Elected[a] = lbpool.Elected{Node: owner, Subnet: u.Addrs[0].Prefix}
	}
	p, a := plan.Compute(l.input(t, n)), plan.Announce(in)
	maps.Copy(p.Routes, a.Routes)
	maps.Copy(p.Filter, a.Filter)
	maps.Copy(p.Sysctls, a.Sysctls)
	return p, a
}

// give makes owner answer, as far as the kernel of each node is concerned. It
// returns how many rows had to be touched.
func (l *balancerLab) give(t *testing.T, owner string) (touched int) {
	t.Helper()
	for _, n := range l.nodes {
		p, a := l.announced(t, n, owner)
		touched += n.apply(t, p) + converge(t, "proxies", newProxies(t, n.space), a.Proxies)
	}
	return touched
}

func newProxies(t testing.TB, s nl.Space) *route.Proxies {
	x := route.NewProxies(s)
	t.Cleanup(func() { x.Close() })
	return x
}

// owner is the node whose hardware address a client has for an address, empty if
// it has none.
func (l *balancerLab) owner(t *testing.T, s nl.Space, a netip.Addr) string {
	t.Helper()
	out := ip(t, s, "neigh", "show", a.String(), "dev", "eth0")
	for _, n := range l.nodes {
		if strings.Contains(out, macOf(t, n.space, "eth0")) {
			return n.row.Key.Name
		}
	}
	return ""
}

func TestContractProxies(t *testing.T) {
	rows := map[plan.NeighbourKey]plan.Proxy{}
	for _, a := range []string{"192.0.2.200", "192.0.2.201", "2001:db8::200", "2001:db8::201"} {
		rows[plan.NeighbourKey{Dev: "eth0", IP: netip.MustParseAddr(a)}] = plan.Proxy{}
	}
	contract(t, func(t *testing.T) reconcile.Target[plan.NeighbourKey, plan.Proxy] {
		s := bare(t)
		ip(t, s, "neigh", "add", "proxy", "192.0.2.77", "dev", "eth0") // somebody else's
		t.Cleanup(func() {
			if out := ip(t, s, "neigh", "show", "proxy"); !strings.Contains(out, "192.0.2.77") {
				t.Errorf("the entry of somebody else is gone: %q", out)
			}
		})
		return newProxies(t, s)
	}, rows, rows)
}

// TestAnnounce (invariant V9): a client finds an address of a load balancer at
// the one node that answers for it, whatever a Service takes gets to its backend,
// all else is refused, and another node can take over.
func TestAnnounce(t *testing.T) {
	for _, backend := range []model.Encap{model.EncapDirect, model.EncapVXLAN} {
		t.Run(string(backend), func(t *testing.T) {
			l := newBalancerLab(t, backend)
			l.program(t)
			port := [2]uint16{serve(t, l.pods[0].space), serve(t, l.pods[1].space)}
			for i, n := range l.nodes {
				rows := map[service.FrontKey]service.Front{{}: {}}
				for _, a := range l.addrs {
					key := front(netip.AddrPortFrom(a, 80).String())
					backend := l.pods[0].row.IPs.V4
					if a.Is6() {
						backend = l.pods[0].row.IPs.V6
					}
					rows[key] = to(t, netip.AddrPortFrom(backend, port[0]).String())
				}
				converge(t, "services", newServices(t, l.nodes[i].space), rows)
				_ = n
			}
			for _, a := range l.addrs {
				if _, err := ask(l.client, a, 80); err == nil {
					t.Fatalf("%v is reachable before anybody answers for it", a)
				}
			}
			for _, owner := range []string{"n1", "n2"} {
				l.give(t, owner)
				for _, a := range l.addrs {
					ip(t, l.client, "neigh", "flush", "dev", "eth0")
					start := time.Now()
					if _, err := ask(l.client, a, 80); err != nil {
						t.Fatalf("%v at %s: %v\n%s", a, owner, err, ip(t, l.client, "neigh"))
					}
					if took := time.Since(start); took > 500*time.Millisecond {
						t.Errorf("%v was found after %v", a, took)
					}
					if got := l.owner(t, l.client, a); got != owner {
						t.Errorf("%v is at %q, want %s", a, got, owner)
					}
					for name, from := range map[string]nl.Space{"client": l.client, "n1": l.nodes[0].space, "n2": l.nodes[1].space, "pod": l.pods[0].space, "other pod": l.pods[1].space} {
						if _, err := ask(from, a, 80); err != nil {
							t.Errorf("%s to %v, which is at %s: %v", name, a, owner, err)
						}
						if _, err := ask(from, a, 81); !errors.Is(err, unix.ECONNREFUSED) {
							t.Errorf("%s to port 81 of %v, which is at %s: %v, want connection refused", name, a, owner, err)
						}
					}
				}
				if n := l.give(t, owner); n != 0 {
					t.Errorf("a restarted agent touched %d rows", n)
				}
			}
		})
	}
}

// TestAnnounceMeddledWith: what others delete is put back (invariant R5), and
// nothing is left by a cleanup (invariant N8).
func TestAnnounceMeddledWith(t *testing.T) {
	l := newBalancerLab(t, model.EncapDirect)
	l.program(t)
	l.give(t, "n1")
	n := l.nodes[0]
	for _, meddle := range []string{
		"neigh del proxy 192.0.2.200 dev eth0",
		"neigh del proxy 2001:db8::200 dev eth0",
		"route del 192.0.2.200 table 7473",
		"link set eth0 down",
	} {
		ip(t, n.space, strings.Fields(meddle)...)
		if strings.HasSuffix(meddle, "down") {
			ip(t, n.space, "link", "set", "eth0", "up")
			addr(t, n.space, "eth0", "2001:db8::1/64") // which goes with it
		}
		if l.give(t, "n1") == 0 {
			t.Errorf("%q went unnoticed", meddle)
		}
	}
	must(t, route.Cleanup(t.Context(), n.space))
	if left := ip(t, n.space, "neigh", "show", "proxy") + ip(t, n.space, "-6", "neigh", "show", "proxy"); strings.TrimSpace(left) != "" {
		t.Errorf("left: %s", left)
	}
}

// TestAnnounceHalfWithdrawn (invariant V6): while an address goes, its route may
// outlive what has its packets refused. They do not circle by lo until then.
func TestAnnounceHalfWithdrawn(t *testing.T) {
	l := newBalancerLab(t, model.EncapDirect)
	l.program(t)
	l.give(t, "n1")
	n, addr := l.nodes[0], l.addrs[0]
	p, a := l.announced(t, n, "n1")
	for key := range a.Filter {
		delete(p.Filter, key)
	}
	n.apply(t, p)
	if ip(t, n.space, "route", "show", addr.String(), "table", "7473") == "" {
		t.Fatal("the route is gone, too")
	}
	before := forwarded(t, n.space)
	for name, from := range map[string]nl.Space{"client": l.client, "pod": l.pods[0].space} {
		if _, err := ask(from, addr, 81); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", name, err)
		}
	}
	if _, err := ask(n.space, addr, 81); err == nil { // its own are lost instead: an answer would be from itself
		t.Error("the node connects to what leads nowhere")
	}
	if got := forwarded(t, n.space) - before; got > 10 {
		t.Errorf("the node forwarded %d packets, of which at most a few were sent", got)
	}
}

// forwarded is how many IPv4 packets a node has forwarded (RFC 4293).
func forwarded(t *testing.T, s nl.Space) (n int) {
	t.Helper()
	must(t, s.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if fields[0] != "Ip:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			n, err = strconv.Atoi(fields[slices.Index(names, "ForwDatagrams")])
			return err
		}
		return errors.New("no line Ip:")
	}))
	return n
}

// TestAnnounceLinkDown: entries that went with a device that was set down are
// back soon after it is up again, long before they are listed for no reason; that
// the cable was pulled costs none.
func TestAnnounceLinkDown(t *testing.T) {
	l := newBalancerLab(t, model.EncapDirect)
	l.program(t)
	l.give(t, "n1")
	_, a := l.announced(t, l.nodes[0], "n1")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	loop(ctx, t, &wg, "proxies", newProxies(t, l.nodes[0].space), a.Proxies)
	seen := newProxies(t, l.nodes[0].space)
	for _, flap := range []struct {
		space nl.Space
		dev   string
	}{{l.nodes[0].space, "eth0"}, {l.fabric.space, "port1"}} {
		ip(t, flap.space, "link", "set", flap.dev, "down")
		ip(t, flap.space, "link", "set", flap.dev, "up")
		eventually(t, "the entries are there", func() bool { return same(t, "proxies", seen, a.Proxies) })
	}
}

// TestTakeover: a neighbour that knows an address at one node learns at once that
// it is now at another.
func TestTakeover(t *testing.T) {
	l := newBalancerLab(t, model.EncapDirect)
	l.program(t)
	l.give(t, "n1")
	for _, a := range l.addrs {
		_, _ = ask(l.client, a, 81)
		if got := l.owner(t, l.client, a); got != "n1" {
			t.Fatalf("%v is at %q", a, got)
		}
		must(t, gratuitous.Send(l.nodes[1].space, "eth0", a))
		eventually(t, "the client knows of n2", func() bool { return l.owner(t, l.client, a) == "n2" })
	}
	if err := gratuitous.Send(l.nodes[1].space, "lo", l.addrs[0]); err == nil {
		t.Error("told on lo")
	}
}

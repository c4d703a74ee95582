package datapath_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/link"
	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/route"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
)

var dualEast, dualWest = []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"}

// events collects every notification of a namespace, like `ip monitor` and
// `nft monitor` side by side.
type events struct {
	mu   sync.Mutex
	list []string // guarded by mu
}

func monitor(t testing.TB, s nl.Space) *events {
	t.Helper()
	x := &events{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for protocol, groups := range map[int][]uint32{
		unix.NETLINK_NETFILTER: {unix.NFNLGRP_NFTABLES},
		unix.NETLINK_ROUTE: {unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF},
	} {
		ready := make(chan struct{})
		wg.Go(func() {
			_ = s.Watch(ctx, protocol, groups, func(e nl.Event) {
				x.mu.Lock()
				defer x.mu.Unlock()
				x.list = append(x.list, fmt.Sprintf("type %d from %d: %x", e.Type, e.Sender, e.Body))
			}, sync.OnceFunc(func() { close(ready) }))
		})
		<-ready
	}
	return x
}

func (x *events) take() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.list)
}

const quiet = 200 * time.Millisecond

// settle forgets what comes late of what was done before: the kernel finishes
// new IPv6 addresses in the background.
func (x *events) settle() {
	for {
		before := len(x.take())
		time.Sleep(quiet)
		x.mu.Lock()
		done := len(x.list) == before
		if done {
			x.list = nil
		}
		x.mu.Unlock()
		if done {
			return
		}
	}
}

// TestRestart: new targets, as in a new process, find all in place and do not
// touch a thing. Invariant: a restart of the agent is not seen by a packet.
func TestRestart(t *testing.T) {
	for _, backend := range []model.Encap{model.EncapDirect, model.EncapVXLAN, model.EncapAuto} {
		t.Run(string(backend), func(t *testing.T) {
			m, _ := twoNodes(t, backend, dualEast, dualWest)
			n := m.nodes[0]
			seen := monitor(t, n.space)
			seen.settle()
			if touched := newTargets(t, n.space).apply(t, plan.Compute(m.input(t, n))); touched != 0 {
				t.Errorf("touched %d rows", touched)
			}
			// A change of our own at the end tells when all before has been seen.
			with(t, n.space, func(h *netlink.Handle) { must(t, h.LinkSetAlias(device(t, h, "lo"), "end")) })
			eventually(t, "the end of the events", func() bool { return len(seen.take()) > 0 })
			if got := seen.take(); len(got) != 1 {
				t.Errorf("events:\n%s", got)
			}
		})
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// run keeps the node as planned with real loops until the test ends. Resync is
// so long that only notifications can bring a repair.
func (n *testNode) run(t testing.TB, p *plan.Plan) {
	t.Helper()
	x := newTargets(t, n.space) // closed after the loops have ended
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	loop(ctx, t, &wg, "nft", x.filter, p.Filter)
	loop(ctx, t, &wg, "tunnels", x.tunnels, p.Tunnels)
	loop(ctx, t, &wg, "neighbours", x.neighbours, p.Neighbours)
	loop(ctx, t, &wg, "routes", x.routes, p.Routes)
	loop(ctx, t, &wg, "rules", x.rules, p.Rules)
}

func loop[K, V comparable](ctx context.Context, t testing.TB, wg *sync.WaitGroup, name string, target reconcile.Target[K, V], wanted map[K]V) {
	l := reconcile.NewLoop(name, target, func() (map[K]V, bool) { return wanted, true }, reconcile.Options{Resync: time.Hour})
	wg.Go(func() { _ = l.Run(ctx) })
	must(t, l.Sync(ctx))
}

// TestRepair: what others break is mended at once, because the kernel tells.
func TestRepair(t *testing.T) {
	m, pods := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
	n := m.nodes[0]
	p := plan.Compute(m.input(t, n))
	n.run(t, p)
	port := serve(t, pods[1].space)
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T)
	}{
		{"delete a route", func(t *testing.T) { ip(t, n.space, "route", "del", "10.2.5.0/24", "table", "7473") }},
		{"flush the table", func(t *testing.T) { ip(t, n.space, "route", "flush", "table", "7473") }},
		{"flush the IPv6 table", func(t *testing.T) { ip(t, n.space, "-6", "route", "flush", "table", "7473") }},
		{"hide a route", func(t *testing.T) { ip(t, n.space, "route", "add", "unreachable", "10.2.5.20/32", "table", "7473") }},
		{"replace a route", func(t *testing.T) { ip(t, n.space, "route", "replace", "unreachable", "10.2.5.0/24", "table", "7473") }},
		{"add a route before ours", func(t *testing.T) {
			ip(t, n.space, "-6", "route", "add", "unreachable", "fd00:2:0:5::/64", "table", "7473", "metric", "1")
		}},
		{"append a route", func(t *testing.T) {
			ip(t, n.space, "route", "append", "10.2.5.0/24", "via", "192.0.2.2", "table", "7473")
		}},
		{"delete the rules", func(t *testing.T) {
			ip(t, n.space, "rule", "del", "priority", "7473")
			ip(t, n.space, "-6", "rule", "del", "priority", "7473")
		}},
		{"delete a neighbour", func(t *testing.T) {
			ip(t, n.space, "neigh", "del", m.nodes[1].row.Key.TunnelMAC().LinkLocal().String(), "dev", "cm-vxlan")
		}},
		{"change a neighbour", func(t *testing.T) {
			ip(t, n.space, "neigh", "replace", m.nodes[1].row.Key.TunnelMAC().LinkLocal().String(), "dev", "cm-vxlan", "lladdr", "02:00:00:00:00:01")
		}},
		{"change a pod's neighbour", func(t *testing.T) {
			ip(t, n.space, "neigh", "replace", "10.1.3.10", "dev", pods[0].row.HostIf, "lladdr", "02:00:00:00:00:01", "nud", "permanent")
		}},
		{"set the tunnel down", func(t *testing.T) { ip(t, n.space, "link", "set", "cm-vxlan", "down") }},
		{"delete the tunnel", func(t *testing.T) { ip(t, n.space, "link", "del", "cm-vxlan") }},
		{"change the tunnel", func(t *testing.T) {
			ip(t, n.space, "link", "set", "cm-vxlan", "mtu", "1000")
			ip(t, n.space, "addr", "add", "203.0.113.1/24", "dev", "cm-vxlan")
			ip(t, n.space, "addr", "del", "10.1.3.1/32", "dev", "cm-vxlan")
		}},
		{"set a pod's device down and up", func(t *testing.T) {
			ip(t, n.space, "link", "set", pods[0].row.HostIf, "down")
			ip(t, n.space, "link", "set", pods[0].row.HostIf, "up")
		}},
		{"flush the ruleset", func(t *testing.T) { run(t, n.space, "nft", "flush", "ruleset") }},
		{"insert a rule", func(t *testing.T) { run(t, n.space, "nft", "insert", "rule", "inet", "clustermesh", "input", "drop") }},
		{"flush a chain", func(t *testing.T) { run(t, n.space, "nft", "flush", "chain", "inet", "clustermesh", "from_pod") }},
		{"flush a set", func(t *testing.T) { run(t, n.space, "nft", "flush", "set", "inet", "clustermesh", "decap44") }},
		{"add an element", func(t *testing.T) {
			run(t, n.space, "nft", "add", "element", "inet", "clustermesh", "nodes4", "{ 198.51.100.1 }")
		}},
		{"delete the arp table", func(t *testing.T) { run(t, n.space, "nft", "delete", "table", "arp", "clustermesh") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spoil(t)
			eventually(t, "repair", func() bool { return n.asPlanned(t, p) })
			reaches(t, pods[0].space, pods[1].row.IPs.V4, port, pods[0].row.IPs.V4)
			reaches(t, pods[0].space, pods[1].row.IPs.V6, port, pods[0].row.IPs.V6)
		})
	}
}

// asPlanned compares the kernel with the plan, without touching it.
func (n *testNode) asPlanned(t testing.TB, p *plan.Plan) bool {
	t.Helper()
	return same(t, "nft", n.filter, p.Filter) && same(t, "tunnels", n.tunnels, p.Tunnels) &&
		same(t, "neighbours", n.neighbours, p.Neighbours) && same(t, "routes", n.routes, p.Routes) && same(t, "rules", n.rules, p.Rules)
}

func same[K, V comparable](t testing.TB, name string, target reconcile.Target[K, V], wanted map[K]V) bool {
	set, del := delta(t, name, target, wanted)
	return len(set)+len(del) == 0
}

// TestLoopsRest: after our own changes nobody lists or applies again and again.
func TestLoopsRest(t *testing.T) {
	m, _ := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
	n := m.nodes[0]
	n.run(t, plan.Compute(m.input(t, n)))
	seen := monitor(t, n.space)
	seen.settle()
	time.Sleep(quiet)
	if got := seen.take(); len(got) > 0 {
		t.Errorf("events without cause:\n%s", got)
	}
}

// TestCleanup: nothing of ours is left (invariant N8), and what is not ours stays.
func TestCleanup(t *testing.T) {
	m, _ := twoNodes(t, model.EncapAuto, dualEast, dualWest)
	n := m.nodes[0]
	ip(t, n.space, "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "table", "100")
	ip(t, n.space, "rule", "add", "priority", "50", "lookup", "100")
	run(t, n.space, "nft", "add", "table", "inet", "other")
	for range 2 { // also when there is nothing to clean
		must(t, nft.Cleanup(t.Context(), n.space))
		must(t, route.Cleanup(t.Context(), n.space))
		must(t, link.Cleanup(t.Context(), n.space))
	}
	fresh := newTargets(t, n.space)
	if !same(t, "nft", fresh.filter, nil) || !same(t, "tunnels", fresh.tunnels, nil) || !same(t, "neighbours", fresh.neighbours, nil) ||
		!same(t, "routes", fresh.routes, nil) || !same(t, "rules", fresh.rules, nil) {
		t.Error("something of ours is left")
	}
	if got := run(t, n.space, "nft", "list", "tables"); got != "table inet other\n" {
		t.Errorf("nft tables: %q", got)
	}
	if got := ip(t, n.space, "route", "show", "table", "100"); got == "" {
		t.Error("a route of somebody else is gone")
	}
	with(t, n.space, func(h *netlink.Handle) {
		links, err := h.LinkList()
		must(t, err)
		for _, l := range links {
			if l.Attrs().Name != "lo" && l.Attrs().Name != "eth0" {
				t.Errorf("device %s is left", l.Attrs().Name)
			}
		}
	})
}

package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/clustermesh/clustermesh/pkg/ipam"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// steps are all points at which ADD can fail or the agent can die.
var steps = []string{"journal", "veth", "host end", "pod end", "row", "sync", "commit", "answer", "end"}

func TestAddCheckDel(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1")
	added := n.ok("ADD", p)
	n.holds(p)
	var got map[string]any
	if err := json.Unmarshal([]byte(added.stdout), &got); err != nil {
		t.Fatal(err)
	}
	row, _ := n.pods.Get(p.key())
	want := map[string]any{
		"cniVersion": "1.1.0",
		"interfaces": []any{
			map[string]any{"name": HostIf(p.key()), "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1500.},
			map[string]any{"name": "eth0", "mac": net.HardwareAddr(row.MAC[:]).String(), "mtu": 1500., "sandbox": nsPath(p.ns)},
		},
		"ips": []any{
			map[string]any{"address": "10.77.1.2/32", "gateway": "169.254.1.1", "interface": 1.},
			map[string]any{"address": "fd00:77:1::2/128", "gateway": "fe80::ecee:eeff:feee:eeee", "interface": 1.},
		},
		"routes": []any{
			map[string]any{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450.},
			map[string]any{"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee", "mtu": 1450.},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n.fails("ADD", p, api.CodeEnvironment, "has an interface eth0 already")
	n.holds(p)
	n.checks(p, added.stdout)
	n.ok("DEL", p)
	n.holds()
	n.ok("DEL", p)
	n.ok("DEL", pod{id: "never-seen"})
	if got := links(t, p.ns); len(got) != 1 {
		t.Errorf("left in the pod: %v", got)
	}
	n.fails("CHECK", p, 3, "no interface eth0 of ours")
}

// checkConfig is what a runtime passes to CHECK.
func checkConfig(result string) string {
	return strings.TrimSuffix(config, "}") + `,"prevResult":` + result + "}"
}

func (n *node) checks(p pod, result string) {
	n.t.Helper()
	if a := n.plugin("CHECK", checkConfig(result), p); a.exit != 0 {
		n.t.Errorf("CHECK: %+v", a.err)
	}
}

// TestCheckFinds breaks one thing at a time.
func TestCheckFinds(t *testing.T) {
	n := newNode(t)
	for name, c := range map[string]struct {
		damage func(p pod, h *netlink.Handle, link netlink.Link)
		text   string
	}{
		"address": {func(p pod, h *netlink.Handle, link netlink.Link) {
			row, _ := n.pods.Get(p.key())
			h.AddrDel(link, &netlink.Addr{IPNet: hostNet(row.IPs.V6)})
		}, "lacks address fd00:77:1::"},
		"link down": {func(p pod, h *netlink.Handle, link netlink.Link) { h.LinkSetDown(link) }, "eth0 is down"},
		"route": {func(p pod, h *netlink.Handle, link netlink.Link) {
			h.RouteDel(&netlink.Route{Dst: defaultNet(GatewayV4), Gw: GatewayV4.AsSlice(), LinkIndex: link.Attrs().Index})
		}, "lacks the route default via 169.254.1.1"},
		"neighbour": {func(p pod, h *netlink.Handle, link netlink.Link) {
			h.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: GatewayV6.AsSlice()})
		}, "lacks the permanent neighbour fe80::ecee:eeff:feee:eeee"},
		"veth": {func(p pod, h *netlink.Handle, link netlink.Link) { h.LinkDel(link) }, "not found"},
		"program": {func(pod, *netlink.Handle, netlink.Link) {
			n.set(func() { n.syncErr = errors.New("nft says no") })
		}, "nft says no"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, "check-"+strings.ReplaceAll(name, " ", "-"))
			result := n.ok("ADD", p).stdout
			h, err := netlink.NewHandleAt(p.ns)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			link, err := h.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			n.checks(p, result)
			c.damage(p, h, link)
			a := n.plugin("CHECK", checkConfig(result), p)
			if a.exit != 1 || !strings.Contains(a.err.Msg, c.text) {
				t.Errorf("CHECK: %+v, want %q", a, c.text)
			}
			n.set(func() { n.syncErr = nil })
			n.ok("DEL", p)
		})
	}
	p := newPod(t, "prev")
	result := n.ok("ADD", p).stdout
	n.fails("CHECK", p, api.CodeConfig, "no prevResult")
	row, _ := n.pods.Get(p.key())
	other := strings.ReplaceAll(result, row.IPs.V4.String(), "10.9.9.9")
	if a := n.plugin("CHECK", checkConfig(other), p); a.exit != 1 || !strings.Contains(a.err.Msg, "is not in prevResult") {
		t.Errorf("CHECK with another address: %+v", a)
	}
}

// TestTraffic: node and pod reach each other in both families at once, with no
// ARP, ND or DAD in between.
func TestTraffic(t *testing.T) {
	n := newNode(t)
	addNodeAddress(t, n)
	p := newPod(t, "a1")
	n.ok("ADD", p)
	row, _ := n.pods.Get(p.key())
	for _, ip := range row.IPs.All() {
		if err := echo(p, n, ip); err != nil {
			t.Errorf("node to pod %s: %v", ip, err)
		}
	}
}

// addNodeAddress gives the node addresses and the rule for the agent's table.
func addNodeAddress(t *testing.T, n *node) {
	h, err := netlink.NewHandleAt(n.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(h.LinkSetUp(lo),
		h.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("10.77.0.1"))}),
		h.AddrAdd(lo, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("fd00:77::1")), Flags: 0x02}))
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Family, rule.Table, rule.Priority = family, table, table
		err = errors.Join(err, h.RuleAdd(rule))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// echo opens a connection from the node to a server in the pod.
func echo(p pod, n *node, ip netip.Addr) error {
	var l net.Listener
	if err := inNS(p.ns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(ip, 0).String())
		return err
	}); err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	return inNS(n.ns, func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 100)
		k, err := c.Read(b)
		if err == nil && string(b[:k]) != c.LocalAddr().String() {
			return fmt.Errorf("the pod saw %s, not %s", b[:k], c.LocalAddr())
		}
		return err
	})
}

// TestRollback: whichever step fails, an ADD leaves nothing, and the next works.
func TestRollback(t *testing.T) {
	n := newNode(t)
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			p := newPod(t, "rollback")
			n.failAt(step)
			n.fails("ADD", p, api.CodeInternal, "injected")
			n.holds()
			if got := links(t, p.ns); len(got) != 1 {
				t.Errorf("left in the pod: %v", got)
			}
			n.failAt()
			n.ok("ADD", p)
			n.holds(p)
			n.ok("DEL", p)
			n.holds()
		})
	}
	t.Run("panic", func(t *testing.T) {
		p := newPod(t, "panic")
		n.set(func() {
			n.fail = func(s string) error {
				if s == "row" {
					panic("injected")
				}
				return nil
			}
		})
		n.fails("ADD", p, api.CodeTryAgain, "cut short")
		n.holds()
		n.failAt()
	})
}

// TestUndoFails: what cannot be undone at once is kept and freed later, or by
// the next ADD or DEL of the attachment, or by the next agent.
func TestUndoFails(t *testing.T) {
	for _, step := range []string{"sync", "end"} {
		for _, stuck := range []string{"delete veth", "delete journal"} {
			for _, then := range []string{"collect", "ADD", "DEL", "restart"} {
				t.Run(step+", "+stuck+", then "+then, func(t *testing.T) { undoFails(t, step, stuck, then) })
			}
		}
	}
}

func undoFails(t *testing.T, step, stuck, then string) {
	n := newNode(t)
	p := newPod(t, "stuck")
	n.failAt(step, stuck)
	n.fails("ADD", p, api.CodeInternal, "undo: injected")
	if n.used() != 1 {
		t.Error("the address is free while the pod may have it")
	}
	n.failAt()
	switch then {
	case "collect":
		n.set(func() { n.now = time.Now().Add(time.Hour) })
		if err := n.agent.collect(t.Context()); err != nil {
			t.Error(err)
		}
	case "ADD":
		n.ok("ADD", p)
		n.holds(p)
		n.ok("DEL", p)
	case "DEL":
		n.ok("DEL", p)
	case "restart":
		n.restart()
	}
	n.holds()
}

// TestNotProgrammed: ADD does not answer before the node is programmed.
func TestNotProgrammed(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1")
	n.set(func() { n.syncErr = errors.New("nft says no") })
	n.fails("ADD", p, api.CodeTryAgain, "program the node for the pod: nft says no")
	n.holds()
}

func TestNotReady(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1")
	n.ok("STATUS", pod{})
	n.set(func() { n.notOK = errors.New("mesh prefixes unknown") })
	n.fails("STATUS", pod{}, api.CodeUnavailable, "mesh prefixes unknown")
	n.fails("ADD", p, api.CodeTryAgain, "mesh prefixes unknown")
	n.ok("DEL", p)
	n.set(func() { n.notOK = nil })
	n.agent.SetPodCIDRs(prefixes())
	n.fails("ADD", p, api.CodeTryAgain, "no pod CIDR")
	n.fails("STATUS", pod{}, api.CodeUnavailable, "no pod CIDR")
}

func TestExhausted(t *testing.T) {
	n := newNode(t)
	n.agent.SetPodCIDRs(prefixes("10.77.9.0/30"))
	a, b := newPod(t, "a"), newPod(t, "b")
	n.ok("ADD", a)
	n.fails("ADD", b, api.CodeTryAgain, "pod CIDR 10.77.9.0/30: all 1 addresses are in use")
	n.ok("STATUS", pod{}) // a full node is not a broken one: pods may stay
	var full *ipam.ExhaustedError
	n.set(func() {
		for _, o := range n.seen {
			if o.Err != nil && !errors.As(o.Err, &full) {
				t.Errorf("outcome %v", o.Err)
			}
		}
	})
	if full == nil {
		t.Error("no outcome says that the prefix is exhausted")
	}
	n.ok("DEL", a)
	n.ok("ADD", b)
}

// TestAgentDown: ADD is put off, and DEL succeeds all the same (invariant N7).
func TestAgentDown(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a1")
	n.ok("ADD", p)
	n.stop()
	n.fails("ADD", newPod(t, "b"), api.CodeTryAgain, "does not answer")
	n.fails("STATUS", pod{}, api.CodeUnavailable, "does not answer")
	if a := n.ok("DEL", p); !strings.Contains(a.stderr, "the agent will free the address later") {
		t.Errorf("stderr %q", a.stderr)
	}
	os.Remove(n.socket)
	n.fails("ADD", newPod(t, "c"), api.CodeTryAgain, "no such file")
	if a := n.plugin("VERSION", `{"cniVersion":"0.4.0"}`, pod{}); a.exit != 0 ||
		a.stdout != `{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`+"\n" {
		t.Errorf("VERSION: %+v", a)
	}
	n.start()
	n.holds(p)
}

func TestParallel(t *testing.T) {
	n := newNode(t)
	const count = 100
	pods := make([]pod, count)
	for i := range pods {
		pods[i] = newPod(t, fmt.Sprintf("par%d", i))
	}
	all := func(verb string) time.Duration {
		started := time.Now()
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				if a := n.plugin(verb, config, p); a.exit != 0 {
					t.Errorf("%s %s: %+v", verb, p.id, a.err)
				}
			})
		}
		wg.Wait()
		return time.Since(started)
	}
	added := all("ADD")
	n.holds(pods...)
	deleted := all("DEL")
	n.holds()
	t.Logf("%d parallel ADDs: %v, DELs: %v", count, added.Round(time.Millisecond), deleted.Round(time.Millisecond))
}

// TestSameAttachment: verbs on one attachment in parallel end in one of two
// clean states.
func TestSameAttachment(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "same")
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() { n.plugin([]string{"ADD", "DEL", "CHECK"}[i%3], config, p) })
	}
	wg.Wait()
	n.ok("DEL", p)
	n.holds()
	n.ok("ADD", p)
	n.holds(p)
}

package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

var serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}

func newServices(t testing.TB, s nl.Space) *nft.Services {
	x := nft.NewServices(s, serviceCIDRs)
	t.Cleanup(func() { x.Close() })
	return x
}

func front(s string) service.FrontKey {
	ap := netip.MustParseAddrPort(s)
	return service.FrontKey{Addr: ap.Addr(), Protocol: unix.IPPROTO_TCP, Port: ap.Port()}
}

// to is a front with these backends.
func to(t testing.TB, backends ...string) service.Front {
	t.Helper()
	var list []service.Backend
	for _, b := range backends {
		list = append(list, service.Backend{AddrPort: netip.MustParseAddrPort(b), Weight: 1})
	}
	slots, even := service.Spread(list)
	if !even {
		t.Fatal("uneven shares")
	}
	return service.Front{Slots: slots}
}

// TestContractServices: what the target promises, and that a front and its slots
// change as one (invariant V3).
func TestContractServices(t *testing.T) {
	outside := front("198.51.100.7:80")
	outside.Outside = true
	udp := front("10.96.0.1:53")
	udp.Protocol = unix.IPPROTO_UDP
	stays, ranged := to(t, "10.1.0.1:80", "10.1.0.2:80"), to(t, "10.1.0.1:80")
	stays.AffinitySeconds, ranged.Ranges = 600, "10.0.0.0/8 203.0.113.0/24"
	six := to(t, "[fd00:1::1]:80", "[fd00:1::2]:80")
	many := make([]string, 0, 70)
	for i := range 70 {
		many = append(many, fmt.Sprintf("10.1.1.%d:80", i+1))
	}
	one := map[service.FrontKey]service.Front{
		{}:                         {},
		front("10.96.0.1:80"):      to(t, "10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:8080"),
		udp:                        to(t, "10.1.0.1:53"),
		front("10.96.0.2:80"):      stays,
		front("10.96.0.3:80"):      {Verdict: service.Reject},
		front("10.96.0.4:80"):      {Verdict: service.Drop},
		front("10.96.0.5:80"):      to(t, many...),
		front("198.51.100.7:80"):   ranged,
		outside:                    to(t, "10.1.0.9:80"),
		front("[fd00:96::1]:80"):   six,
		front("[fd00:96::2]:4430"): {Verdict: service.Reject},
	}
	two := map[service.FrontKey]service.Front{
		{}:                         {},
		front("10.96.0.1:80"):      to(t, "10.1.0.1:80", "10.1.0.4:80"),
		udp:                        {Verdict: service.Reject},
		front("10.96.0.2:80"):      to(t, "10.1.0.1:80"),
		front("10.96.0.3:80"):      stays,
		front("10.96.0.4:80"):      ranged,
		front("10.96.0.5:80"):      to(t, many[1:]...),
		front("198.51.100.7:80"):   {Verdict: service.Drop},
		outside:                    {Verdict: service.Drop},
		front("[fd00:96::1]:80"):   {Verdict: service.Drop},
		front("[fd00:96::2]:4430"): six,
	}
	for name, fresh := range map[string]func() reconcile.Target[service.FrontKey, service.Front]{
		"fake": func() reconcile.Target[service.FrontKey, service.Front] {
			return reconcile.NewFake[service.FrontKey, service.Front](nil)
		},
		"kernel": func() reconcile.Target[service.FrontKey, service.Front] { return newServices(t, newSpace(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			target := fresh()
			shows(t, target, nil)
			put(t, target, one, nil)
			shows(t, target, one)
			put(t, target, one, nil)
			shows(t, target, one)
			put(t, target, two, nil)
			shows(t, target, two)
			put(t, target, one, nil)
			shows(t, target, one)
			gone := front("10.96.0.1:80")
			put(t, target, map[service.FrontKey]service.Front{outside: two[outside]}, []service.FrontKey{gone})
			want := maps.Clone(one)
			want[outside] = two[outside]
			delete(want, gone)
			shows(t, target, want)
			put(t, target, nil, slices.Collect(maps.Keys(want)))
			shows(t, target, nil)
		})
	}
}

// TestServicesMeddledWith: what others change, delete or flush is put right
// (invariant R5), in one transaction.
func TestServicesMeddledWith(t *testing.T) {
	s := newSpace(t)
	x := newServices(t, s)
	rows := map[service.FrontKey]service.Front{{}: {}, front("10.96.0.1:80"): to(t, "10.1.0.1:80", "10.1.0.2:80"), front("10.96.0.2:80"): {Verdict: service.Reject}}
	converge(t, "services", x, rows)
	for _, meddle := range []string{
		"flush ruleset",
		"delete table inet clustermesh-services",
		"flush map inet clustermesh-services slots4",
		"flush map inet clustermesh-services fronts4",
		"flush chain inet clustermesh-services pick2",
		"insert rule inet clustermesh-services prerouting accept",
		"delete element inet clustermesh-services none4 { 10.96.0.2 . tcp . 80 }",
		"add element inet clustermesh-services none4 { 10.96.0.3 . tcp . 80 }",
	} {
		run(t, s, "nft", meddle)
		if converge(t, "services", x, rows) == 0 {
			t.Errorf("%q went unnoticed", meddle)
		}
	}
	again := newServices(t, s) // a restarted agent touches nothing (invariant R1)
	if n := converge(t, "services", again, rows); n != 0 {
		t.Errorf("a second target touched %d rows", n)
	}
}

// TestServicesRefused (invariant R4): a row that the kernel refuses keeps no other
// from its place, not even when it wants a chain that is not there yet.
func TestServicesRefused(t *testing.T) {
	for name, seconds := range map[string]uint32{"without": 0, "with a new chain": 77} {
		t.Run(name, func(t *testing.T) {
			space := newSpace(t)
			x := newServices(t, space)
			held := map[service.FrontKey]service.Front{{}: {}, front("10.96.0.1:80"): to(t, "10.1.0.1:80"), front("[fd00:96::1]:80"): {Verdict: service.Reject}}
			converge(t, "services", x, held)
			bad := to(t, "10.1.0.3:80")
			bad.AffinitySeconds, bad.Ranges = seconds, "10.0.0.0/8 10.1.0.0/16" // overlapping: the planner joins those
			want := maps.Clone(held)
			want[front("10.96.0.3:80")], want[front("10.96.0.4:80")] = to(t, "10.1.0.4:80"), to(t, "10.1.0.5:80")
			set := maps.Clone(want)
			set[front("10.96.0.2:80")] = bad
			for k := range held {
				delete(set, k)
			}
			failed := x.Apply(t.Context(), set, nil)
			if len(failed) != 1 || failed[front("10.96.0.2:80")] == nil {
				t.Errorf("refused: %v, want 10.96.0.2 alone", failed)
			}
			shows(t, newServices(t, space), want)
		})
	}
}

// serviceLab is a node with two pods, another node with one, and a client on
// the fabric that is no node.
type serviceLab struct {
	node         *testNode
	a, b, remote *testPod
	client       nl.Space
	services     *nft.Services
	port         map[*testPod]uint16
}

func newServiceLab(t *testing.T, backend model.Encap) *serviceLab {
	f := newFabric(t)
	m := &mesh{backend: backend, services: true, prefixes: map[string][]netip.Prefix{"west": {netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}}}
	n1 := m.join(t, f, "west", "n1", []string{"192.0.2.1/24", "2001:db8::1/64"}, "10.1.0.0/24", "fd00:1:0:1::/64")
	n2 := m.join(t, f, "west", "n2", []string{"192.0.2.2/24", "2001:db8::2/64"}, "10.1.1.0/24", "fd00:1:0:2::/64")
	l := &serviceLab{node: n1, a: n1.pod(t, "a", "10.1.0.2", "fd00:1:0:1::2"), b: n1.pod(t, "b", "10.1.0.3", "fd00:1:0:1::3"),
		remote: n2.pod(t, "r", "10.1.1.2", "fd00:1:0:2::2"), client: newSpace(t)}
	f.plug(t, l.client, "192.0.2.99/24", "2001:db8::99/64")
	ip(t, l.client, "route", "add", "10.96.0.0/16", "via", "192.0.2.1")
	ip(t, l.client, "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	for _, n := range []nl.Space{n1.space, n2.space} {
		ip(t, n, "route", "add", "default", "dev", "eth0")
		ip(t, n, "-6", "route", "add", "default", "dev", "eth0")
	}
	m.program(t)
	l.services = newServices(t, n1.space)
	l.port = map[*testPod]uint16{}
	for _, p := range []*testPod{l.a, l.b, l.remote} {
		l.port[p] = serve(t, p.space)
	}
	return l
}

func (l *serviceLab) at(p *testPod, six bool) string {
	addr := p.row.IPs.V4
	if six {
		addr = p.row.IPs.V6
	}
	return netip.AddrPortFrom(addr, l.port[p]).String()
}

// TestServicePackets (invariant V6) sends real packets to Services from pods, the node, and a
// client outside, with backends here, on another node, and the client itself.
func TestServicePackets(t *testing.T) {
	for _, backend := range []model.Encap{model.EncapDirect, model.EncapVXLAN} {
		t.Run(string(backend), func(t *testing.T) {
			l := newServiceLab(t, backend)
			vip := netip.MustParseAddr
			toA, toB, toRemote := to(t, l.at(l.a, false)), to(t, l.at(l.b, false)), to(t, l.at(l.remote, false))
			outside := front("198.51.100.7:80")
			outside.Outside = true
			ranged := toA
			ranged.Ranges = "203.0.113.0/24"
			mine := toA
			mine.Ranges = "192.0.2.96/28"
			converge(t, "services", l.services, map[service.FrontKey]service.Front{
				{}: {}, front("10.96.0.1:80"): toA, front("10.96.0.2:80"): toB, front("10.96.0.3:80"): toRemote,
				front("10.96.0.4:80"): {Verdict: service.Reject}, front("192.0.2.1:30080"): toRemote, front("192.0.2.1:30081"): toB,
				front("198.51.100.7:80"): toRemote, outside: toA, front("198.51.100.8:80"): ranged, front("198.51.100.9:80"): mine,
				front("[fd00:96::1]:80"): to(t, l.at(l.a, true)), front("[fd00:96::3]:80"): to(t, l.at(l.remote, true)), front("[2001:db8::1]:30080"): to(t, l.at(l.remote, true)),
			})
			node4, node6 := vip("192.0.2.1"), vip("2001:db8::1")
			if backend == model.EncapVXLAN {
				node4, node6 = vip("10.1.0.1"), vip("fd00:1:0:1::1") // the node's address in the tunnel
			}
			b4, b6 := l.b.row.IPs.V4, l.b.row.IPs.V6
			reaches(t, l.b.space, vip("10.96.0.1"), 80, b4)                  // pod to pod on the node
			reaches(t, l.b.space, vip("10.96.0.3"), 80, b4)                  // to another node, as itself
			reaches(t, l.b.space, vip("10.96.0.2"), 80, vip("192.0.2.1"))    // to itself, as the node
			reaches(t, l.b.space, vip("198.51.100.7"), 80, b4)               // external address from inside: the inside backends
			reaches(t, l.b.space, vip("192.0.2.1"), 30080, b4)               // node port from a pod
			reaches(t, l.node.space, vip("10.96.0.1"), 80, vip("192.0.2.1")) // the node itself
			reaches(t, l.node.space, vip("10.96.0.3"), 80, node4)            //
			reaches(t, l.client, vip("192.0.2.1"), 30080, node4)             // from outside to another node: answers come back here
			reaches(t, l.client, vip("192.0.2.1"), 30081, vip("192.0.2.99")) // to a pod here, as itself
			reaches(t, l.client, vip("198.51.100.7"), 80, vip("192.0.2.99")) // what counts outside
			reaches(t, l.client, vip("198.51.100.9"), 80, vip("192.0.2.99")) // in the ranges
			reaches(t, l.b.space, vip("fd00:96::1"), 80, b6)                 // IPv6 alike
			reaches(t, l.b.space, vip("fd00:96::3"), 80, b6)                 //
			reaches(t, l.client, vip("2001:db8::1"), 30080, node6)           //
			if _, err := ask(l.client, vip("198.51.100.8"), 80); err == nil || errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a client out of range: %v, want silence", err)
			}
			for name, from := range map[string]nl.Space{"pod": l.b.space, "node": l.node.space, "client": l.client} {
				for _, to := range []string{"10.96.0.4", "10.96.0.99"} { // no backend, no service
					if _, err := ask(from, vip(to), 80); !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("from %s to %s: %v, want connection refused", name, to, err)
					}
				}
			}
		})
	}
}

// TestServiceAffinity: a client stays with its backend, others are spread.
func TestServiceAffinity(t *testing.T) {
	l := newServiceLab(t, model.EncapDirect)
	for _, six := range []bool{false, true} {
		vip := front("10.96.0.1:80")
		if six {
			vip = front("[fd00:96::1]:80")
		}
		spread := to(t, l.at(l.a, six), l.at(l.remote, six))
		stays := spread
		stays.AffinitySeconds = 2
		converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, vip: stays})
		first := l.who(t, vip)
		for range 20 {
			if got := l.who(t, vip); got != first {
				t.Fatalf("moved from %v to %v", first, got)
			}
		}
		// The backend goes: the client must not be sent there any more.
		other := to(t, l.at(l.a, six))
		if first == l.a {
			other = to(t, l.at(l.remote, six))
		}
		other.AffinitySeconds = 2
		converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, vip: other})
		if got := l.who(t, vip); got == first {
			t.Errorf("still sent to a backend that is gone")
		}
		converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, vip: spread})
		seen := map[*testPod]int{}
		for range 60 {
			seen[l.who(t, vip)]++
		}
		if len(seen) != 2 || min(seen[l.a], seen[l.remote]) < 10 {
			t.Errorf("60 connections without affinity: %v", seen)
		}
	}
}

// TestServiceAffinityTimeouts: a Service whose timeout changes again and again
// leaves no chains behind, nor does a restart of the agent keep them.
func TestServiceAffinityTimeouts(t *testing.T) {
	s := newSpace(t)
	x := newServices(t, s)
	other := to(t, "10.1.0.9:80")
	other.AffinitySeconds = 5
	for seconds := range uint32(6) {
		if seconds == 4 {
			x = newServices(t, s)
		}
		stays := to(t, "10.1.0.1:80", "10.1.0.2:80")
		stays.AffinitySeconds = 10800 + seconds
		converge(t, "services", x, map[service.FrontKey]service.Front{{}: {}, front("10.96.0.1:80"): stays, front("10.96.0.2:80"): other})
	}
	chains := run(t, s, "nft", "list", "chains", "inet")
	if n := strings.Count(chains, "chain pick2_stay"); n == 0 || n > 2 { // the last, and the one before, which was in use when it was made
		t.Errorf("%d chains for one Service with two backends:\n%s", n, chains)
	}
	if !strings.Contains(chains, "chain pick1_stay5 ") {
		t.Error("the chain of another Service is gone")
	}
}

// TestServiceAffinityFull: where no more clients can be remembered, those who come
// are served without, and counted.
func TestServiceAffinityFull(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a map with 262,144 clients")
	}
	l := newServiceLab(t, model.EncapDirect)
	stays := to(t, l.at(l.a, false), l.at(l.remote, false))
	stays.AffinitySeconds = 3600
	vip := front("10.96.0.1:80")
	converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, vip: stays})
	var text strings.Builder
	for i := range 1 << 18 {
		if i%1024 == 0 {
			text.WriteString("}\nadd element inet clustermesh-services stay4 {")
		}
		fmt.Fprintf(&text, "11.%d.%d.%d . 10.96.0.1 . tcp . 80 : 10.1.0.9 . 80,", i>>16, i>>8&255, i&255)
	}
	file := filepath.Join(t.TempDir(), "clients.nft")
	must(t, os.WriteFile(file, []byte(strings.TrimPrefix(text.String(), "}\n")+"}\n"), 0o600))
	run(t, l.node.space, "nft", "-f", file)
	seen := map[*testPod]int{}
	for range 20 {
		seen[l.who(t, vip)]++
	}
	if len(seen) != 2 {
		t.Errorf("20 connections went to %d backends, want both", len(seen))
	}
	counters, err := l.services.Counters(t.Context())
	must(t, err)
	if n := counters["affinity_full"].Packets; n != 20 {
		t.Errorf("%d clients counted, want 20", n)
	}
	start := time.Now()
	// A backend goes: clients of the Service are forgotten, all of them those of one that was none.
	converge(t, "services", l.services, map[service.FrontKey]service.Front{{}: {}, vip: {Slots: to(t, l.at(l.a, false)).Slots, AffinitySeconds: 3600}})
	t.Logf("clients forgotten after %v", time.Since(start))
	if left := strings.Count(run(t, l.node.space, "nft", "list", "map", "inet", "clustermesh-services", "stay4"), "expires"); left != 0 {
		t.Errorf("%d clients of a backend that is gone are remembered", left)
	}
}

// who returns the pod that answers b at a front: each tells its own address by
// the port it listens on.
func (l *serviceLab) who(t *testing.T, vip service.FrontKey) *testPod {
	t.Helper()
	before := map[*testPod]int64{}
	for _, p := range []*testPod{l.a, l.remote} {
		before[p] = accepted(t, p.space)
	}
	_, err := ask(l.b.space, vip.Addr, vip.Port)
	must(t, err)
	for p, n := range before {
		if accepted(t, p.space) > n {
			return p
		}
	}
	t.Fatal("nobody accepted")
	return nil
}

// accepted is how many TCP connections a namespace has taken in all (TcpPassiveOpens).
func accepted(t *testing.T, s nl.Space) (n int64) {
	t.Helper()
	for _, line := range strings.Split(run(t, s, "cat", "/proc/thread-self/net/snmp"), "\n") {
		if f := strings.Fields(line); len(f) > 6 && f[0] == "Tcp:" && f[1] != "RtoAlgorithm" {
			n, _ = strconv.ParseInt(f[6], 10, 64)
		}
	}
	return n
}

// TestServicesScale: 10,000 Services with 10 backends each, in both families, and
// changes at that size. It prints times; what it checks is that all is there.
func TestServicesScale(t *testing.T) {
	if testing.Short() {
		t.Skip("loads 10,000 Services")
	}
	planner := service.NewPlanner()
	planner.SetBase(service.Base{Node: "n1", NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	ports, slices := map[model.ServicePortKey]model.ServicePort{}, map[model.SliceKey]string{}
	for i := range 10_000 {
		ports[model.ServicePortKey{Namespace: "default", Name: fmt.Sprint("s", i)}] = model.ServicePort{Protocol: 6, Port: 80,
			ClusterIPs: model.Addrs{V4: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}}
		slices[model.SliceKey{Namespace: "default", Name: fmt.Sprint("s", i)}] = crowdSlice(i, 10)
	}
	planner.SetPorts(ports, nil)
	planner.SetSlices(slices, nil)
	x := newServices(t, newSpace(t))
	start := time.Now()
	put(t, x, planner.Plan().Fronts, nil)
	t.Logf("100,000 slots in the kernel after %v", time.Since(start))
	took := map[string][]time.Duration{}
	before := planner.Plan().Fronts
	for i := range 40 {
		n := 9 + 2*(i%2) // one backend less, or one more
		start := time.Now()
		planner.SetSlices(map[model.SliceKey]string{{Namespace: "default", Name: fmt.Sprint("s", 7*i)}: crowdSlice(7*i, n)}, nil)
		next := planner.Plan().Fronts
		took["plan"] = append(took["plan"], time.Since(start))
		start = time.Now()
		set, del := reconcile.Delta(before, next)
		took["compare"] = append(took["compare"], time.Since(start))
		start = time.Now()
		put(t, x, set, del)
		took["apply"] = append(took["apply"], time.Since(start))
		before = next
	}
	for what, list := range took {
		sort(list)
		t.Logf("one EndpointSlice changed: %s p50 %v, worst %v", what, list[len(list)/2], list[len(list)-1])
	}
	if !same(t, "services", x, before) {
		t.Error("not as planned in the end")
	}
}

// TestServicesMany: 50,000 Services are programmed and found again, a change of one
// is a transaction with that one, and a thousand flips that come faster than they
// are applied end as the last one says.
func TestServicesMany(t *testing.T) {
	if testing.Short() {
		t.Skip("loads 50,000 Services")
	}
	const many = 50_000
	planner := service.NewPlanner()
	planner.SetBase(service.Base{Node: "n1"})
	ports, slices := map[model.ServicePortKey]model.ServicePort{}, map[model.SliceKey]string{}
	for i := range many {
		ports[model.ServicePortKey{Namespace: "default", Name: fmt.Sprint("s", i)}] = model.ServicePort{Protocol: 6, Port: 80,
			ClusterIPs: model.Addrs{V4: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}}
		slices[model.SliceKey{Namespace: "default", Name: fmt.Sprint("s", i)}] = crowdSlice(i, 3)
	}
	planner.SetPorts(ports, nil)
	planner.SetSlices(slices, nil)
	space := newSpace(t)
	target := &counting{Target: newServices(t, space)}
	table := state.New[service.FrontKey, service.Front]()
	publish := func(p *service.Patch) {
		p.Set[service.FrontKey{}] = service.Front{}
		table.Update("plan", p.Set, p.Del)
	}
	publish(planner.Update())
	all := func() reconcile.Orphan[service.FrontKey] { return func(service.FrontKey) bool { return true } }
	loop := reconcile.NewTableLoop("services", target, table, all, reconcile.Options{Resync: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- loop.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	start := time.Now()
	must(t, loop.Sync(ctx))
	t.Logf("%d Services in the kernel after %v", many, time.Since(start))
	lists, applied := target.lists, target.rows
	if applied != many+1 {
		t.Errorf("%d rows applied from cold, want %d", applied, many+1)
	}
	start = time.Now()
	for i := range 1001 {
		planner.SetSlices(map[model.SliceKey]string{{Namespace: "default", Name: "s7"}: crowdSlice(7, 2+i%2)}, nil)
		publish(planner.Update())
	}
	must(t, loop.Sync(ctx))
	t.Logf("1,001 flips settled after %v, in %d rows", time.Since(start), target.rows-applied)
	if target.lists != lists || target.rows == applied || target.rows-applied > 1001 {
		t.Errorf("%d lists and %d rows for 1,001 flips of one Service, want no list and at most 1,001", target.lists-lists, target.rows-applied)
	}
	var took []time.Duration
	for i := range 40 {
		start := time.Now()
		planner.SetSlices(map[model.SliceKey]string{{Namespace: "default", Name: fmt.Sprint("s", 7*i)}: crowdSlice(7*i, 2+2*(i%2))}, nil)
		publish(planner.Update())
		must(t, loop.Sync(ctx))
		took = append(took, time.Since(start))
	}
	sort(took)
	t.Logf("one EndpointSlice changed: p50 %v, worst %v", took[len(took)/2], took[len(took)-1])
	start = time.Now()
	found, err := newServices(t, space).List(ctx)
	must(t, err)
	t.Logf("found again in %v", time.Since(start))
	if want := table.Rows(); !maps.Equal(found, want) {
		t.Errorf("%d rows found, not as the %d planned", len(found), len(want))
	}
}

// counting counts what a target is asked for. Its loop alone writes the numbers,
// before Sync returns.
type counting struct {
	reconcile.Target[service.FrontKey, service.Front]
	lists, rows int
}

func (c *counting) List(ctx context.Context) (map[service.FrontKey]service.Front, error) {
	c.lists++
	return c.Target.List(ctx)
}

func (c *counting) Apply(ctx context.Context, set map[service.FrontKey]service.Front, del []service.FrontKey) map[service.FrontKey]error {
	c.rows += len(set) + len(del)
	return c.Target.Apply(ctx, set, del)
}

// crowdSlice is the slice of Service i with n backends.
func crowdSlice(i, n int) string {
	s := wire.Slice{Service: fmt.Sprint("s", i), Ports: []wire.Port{{Protocol: 6, Port: 8080}}}
	for j := range n {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, byte(1 + j), byte(i >> 8), byte(i)}), Ready: true, Serving: true})
	}
	return string(s.Encode())
}

func sort(list []time.Duration) { slices.Sort(list) }

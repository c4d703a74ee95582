package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// rows are what a planner is told.
type rows struct {
	ports  map[model.ServicePortKey]model.ServicePort
	slices map[model.SliceKey]string
}

func (r rows) plan() *Plan {
	p := NewPlanner()
	p.SetBase(testBase)
	p.SetPorts(r.ports, nil)
	p.SetSlices(r.slices, nil)
	return p.Plan()
}

func sliceKey(name string) model.SliceKey { return model.SliceKey{Namespace: "default", Name: name} }

// TestOdd: what is wrong with a Service is said, and hurts nobody else.
func TestOdd(t *testing.T) {
	six := func(s *model.ServicePort) {
		s.ClusterIPs, s.ExternalIPs, s.CreatedUnix = model.Addrs{V6: addr("fd00:96::10")}, "2001:db8:7::7", 200
	}
	other := model.ServicePortKey{Namespace: "default", Name: "web6", Port: "http"}
	one := map[model.SliceKey]string{sliceKey("web-1"): endpoints("10.1.0.1 n1 ready")}
	for _, tt := range []struct {
		name string
		rows rows
		want string
	}{
		{"an older Service without the family has no say in it", rows{map[model.ServicePortKey]model.ServicePort{
			web: webPort(func(s *model.ServicePort) { s.ExternalIPs, s.NodePort = "2001:db8:7::7", 30080 }), other: webPort(six)},
			map[model.SliceKey]string{sliceKey("web-1"): endpoints("10.1.0.1 n1 ready"), sliceKey("web6-1"): endpointsOf("web6", "fd00:1::1 n1 ready")}},
			"10.96.0.10:80 6: forward 10.1.0.1\n192.0.2.1:30080 6: forward 10.1.0.1\n[2001:db8:7::7]:80 6: forward fd00:1::1\n[fd00:96::10]:80 6: forward fd00:1::1"},
		{"source ranges that are none", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(func(s *model.ServicePort) {
			s.LoadBalancerIPs, s.SourceRanges = "198.51.100.7", "10.0.0.0/33 x"
		})}, one}, "10.96.0.10:80 6: forward 10.1.0.1\n198.51.100.7:80 6: drop\n! source range \"10.0.0.0/33\" is no prefix: it lets nobody in; source range \"x\" is no prefix: it lets nobody in"},
		{"a source range of everybody", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(func(s *model.ServicePort) {
			s.LoadBalancerIPs, s.SourceRanges = "198.51.100.7", "0.0.0.0/0 10.0.0.0/8"
		})}, one}, "10.96.0.10:80 6: forward 10.1.0.1\n198.51.100.7:80 6: forward 10.1.0.1"},
		{"ready in one slice, terminating in another", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(nil)},
			map[model.SliceKey]string{sliceKey("a"): endpoints("10.1.0.1 n1 terminating"), sliceKey("b"): endpoints("10.1.0.1 n1 ready")}}, "10.96.0.10:80 6: forward 10.1.0.1"},
		{"an address that a new pod has, not ready yet", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(nil)},
			map[model.SliceKey]string{sliceKey("a"): endpoints("10.1.0.1 n1 terminating"), sliceKey("b"): endpoints("10.1.0.1 n1")}}, "10.96.0.10:80 6: reject"},
		{"backends that can't be", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(nil)},
			map[model.SliceKey]string{sliceKey("a"): endpoints("0.0.0.0 n1 ready", "10.1.0.1 n1 ready", "127.0.0.1 n1 ready", "169.254.169.254 n1 ready", "224.0.0.1 n1 ready")}},
			"10.96.0.10:80 6: forward 10.1.0.1\n! endpoint 0.0.0.0 is refused: it is no address of a pod or a host; endpoint 127.0.0.1 is refused: it is no address of a pod or a host; " +
				"endpoint 169.254.169.254 is refused: it is no address of a pod or a host; endpoint 224.0.0.1 is refused: it is no address of a pod or a host"},
		{"the virtual address as its own backend", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(nil)},
			map[model.SliceKey]string{sliceKey("a"): endpoints("10.1.0.1 n1 ready", "10.96.0.10 n1 ready")}}, "10.96.0.10:80 6: forward 10.1.0.1 10.96.0.10"},
		{"a slice that can't be read", rows{map[model.ServicePortKey]model.ServicePort{web: webPort(nil)},
			map[model.SliceKey]string{sliceKey("a"): "\x01\xff", sliceKey("b"): endpoints("10.1.0.1 n1 ready")}},
			"10.96.0.10:80 6: forward 10.1.0.1\n! EndpointSlice can't be read, none of its endpoints counts: garbled field tag: unexpected EOF"},
		{"port names and protocols that don't match", rows{map[model.ServicePortKey]model.ServicePort{
			web: webPort(nil), {Namespace: "default", Name: "web", Port: "https"}: webPort(func(s *model.ServicePort) { s.Port = 443 }),
			{Namespace: "default", Name: "web", Port: "dns"}: webPort(func(s *model.ServicePort) { s.Port, s.Protocol = 53, 17 })}, one},
			"10.96.0.10:443 6: reject\n10.96.0.10:53 17: reject\n10.96.0.10:80 6: forward 10.1.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := show(tt.rows.plan()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// endpointsOf is endpoints of another Service.
func endpointsOf(service string, lines ...string) string {
	s, err := wire.DecodeSlice([]byte(endpoints(lines...)))
	if err != nil {
		panic(err)
	}
	s.Service = service
	return string(s.Encode())
}

// TestHealthPortConflict: of two Services with one healthCheckNodePort one is
// served, and the other hears of it.
func TestHealthPortConflict(t *testing.T) {
	local := func(clusterIP string) model.ServicePort {
		return webPort(func(s *model.ServicePort) {
			s.ClusterIPs.V4, s.ExternalLocal, s.HealthCheckNodePort = addr(clusterIP), true, 31000
		})
	}
	p := rows{map[model.ServicePortKey]model.ServicePort{web: local("10.96.0.1"), {Namespace: "default", Name: "db"}: local("10.96.0.2")}, nil}.plan()
	if len(p.Health) != 1 || p.Health[31000].Name != "db" || len(p.Lines) != 1 || p.Lines[0].Object != "default/web" ||
		p.Lines[0].Message != "healthCheckNodePort 31000 belongs to service default/db; this one is not served there" {
		t.Errorf("health %+v, lines %+v", p.Health, p.Lines)
	}
}

// TestHostPortsOfLaterAddress: a node that gets an address of another family
// serves the ports of pods there that had nowhere to be served before.
func TestHostPortsOfLaterAddress(t *testing.T) {
	p, base := NewPlanner(), testBase
	base.HostAddrs = []netip.Addr{addr("192.0.2.1")}
	p.SetBase(base)
	key := model.PodKey{ContainerID: "c1", IfName: "eth0"}
	p.SetPods(map[model.PodKey]model.Pod{key: {Key: key, Name: "web", IPs: model.Addrs{V6: addr("fd00:1::2")}, HostPorts: "6/8080:80"}}, nil)
	if got := show(p.Plan()); got != "" {
		t.Fatalf("without an address: %s", got)
	}
	base.HostAddrs = []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}
	p.SetBase(base)
	if got, want := show(p.Plan()), "[2001:db8::1]:8080 6: forward fd00:1::2"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestVictim (invariant V7): whatever other Services claim, and in whichever
// order, the fronts of one that has its addresses by right do not change.
func TestVictim(t *testing.T) {
	victim := webPort(func(s *model.ServicePort) {
		s.NodePort, s.ExternalIPs, s.LoadBalancerIPs, s.CreatedUnix = 30080, "198.51.100.7 2001:db8:7::7", "198.51.100.8", 100
		s.ClusterIPs.V6 = addr("fd00:96::10")
	})
	mine := rows{map[model.ServicePortKey]model.ServicePort{web: victim},
		map[model.SliceKey]string{sliceKey("web-1"): endpoints("10.1.0.1 n1 ready", "10.1.1.1 n2 ready"), sliceKey("web-2"): endpoints("fd00:1::1 n1 ready")}}
	want := mine.plan()
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := NewPlanner()
		p.SetBase(testBase)
		p.SetPorts(mine.ports, nil)
		p.SetSlices(mine.slices, nil)
		for range 60 {
			attack(r, p)
			if r.IntN(4) == 0 {
				p.Plan()
			}
		}
		got := p.Plan().Fronts
		for k, f := range want.Fronts {
			if got[k] != f {
				t.Fatalf("seed %d: %v is %+v, want %+v", seed, k, got[k], f)
			}
		}
	}
}

// attack changes a row of a Service that wants what is the victim's.
func attack(r *rand.Rand, p *Planner) {
	name := fmt.Sprint("evil", r.IntN(4))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	key := model.ServicePortKey{Namespace: pick("default", "a", "zz"), Name: name, Port: pick("", "http", "other")}
	switch r.IntN(4) {
	case 0:
		p.SetPorts(nil, []model.ServicePortKey{key})
	case 1, 2:
		s := model.ServicePort{Protocol: []uint8{6, 17, 132, 0}[r.IntN(4)], Port: []uint16{80, 30080, 0, 65535}[r.IntN(4)], NodePort: []uint16{0, 30080, 80, 30081}[r.IntN(4)],
			ExternalIPs: pick("", "10.96.0.10", "192.0.2.1", "198.51.100.7", "198.51.100.7 198.51.100.8", "2001:db8:7::7", "fd00:96::10", "x", "0.0.0.0"), LoadBalancerIPs: pick("", "10.96.0.10", "192.0.2.1", "198.51.100.7", "198.51.100.8", "::1"),
			SourceRanges: pick("", "0.0.0.0/0", "x", "10.0.0.0/8 ::/0"), AffinitySeconds: []uint32{0, 86400, 1<<32 - 1}[r.IntN(3)], InternalLocal: r.IntN(2) == 0, ExternalLocal: r.IntN(2) == 0,
			HealthCheckNodePort: []uint16{0, 30080}[r.IntN(2)], CreatedUnix: int64(101 + r.IntN(3))}
		if r.IntN(2) == 0 {
			s.ClusterIPs.V4 = netip.AddrFrom4([4]byte{10, 96, 1, byte(r.IntN(3))})
		}
		if r.IntN(2) == 0 {
			s.ClusterIPs.V6 = addr("fd00:96::11")
		}
		p.SetPorts(map[model.ServicePortKey]model.ServicePort{key: s}, nil)
	case 3:
		value := pick("", "\x01", "garbage", endpointsOf(name, "10.1.0.1 n1 ready", "10.96.0.10 n1 ready"), endpointsOf(name, "127.0.0.1 n1 ready"),
			endpointsOf(name), endpointsOf(name, "fd00:96::10 n1 terminating"), endpointsOf(strings.Repeat("w", 63), "10.1.0.1 n1 ready"))
		p.SetSlices(map[model.SliceKey]string{{Namespace: key.Namespace, Name: pick("a", "b")}: value}, nil)
	}
}

// TestVictimOfAnElder (invariant V7): an older Service can't take a cluster IP or
// a node port by calling it external, even where externalCIDRs allows the prefix.
func TestVictimOfAnElder(t *testing.T) {
	base := testBase
	base.External = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	p := NewPlanner()
	p.SetBase(base)
	evil := model.ServicePortKey{Namespace: "a", Name: "evil"}
	p.SetPorts(map[model.ServicePortKey]model.ServicePort{web: webPort(func(s *model.ServicePort) { s.NodePort = 80 }),
		evil: webPort(func(s *model.ServicePort) {
			s.CreatedUnix, s.ClusterIPs.V4, s.ExternalIPs = 1, addr("10.96.0.11"), "10.96.0.10 192.0.2.1"
		})}, nil)
	p.SetSlices(map[model.SliceKey]string{sliceKey("web-1"): endpoints("10.1.0.1 n1 ready")}, nil)
	plan := p.Plan()
	for _, a := range []string{"10.96.0.10", "192.0.2.1"} {
		if f := plan.Fronts[FrontKey{Addr: addr(a), Protocol: 6, Port: 80}]; f.Verdict != Forward {
			t.Errorf("%s: %+v, want the backend of default/web", a, f)
		}
	}
	if len(plan.Lines) != 1 || strings.Count(plan.Lines[0].Message, "belongs to service default/web:http") != 2 {
		t.Errorf("lines %+v, want one for a/evil that names both addresses", plan.Lines)
	}
}

// TestFlapping: a thousand changes between two plans cost what the last of them
// costs, and any number of plans ends where a new planner would.
func TestFlapping(t *testing.T) {
	all := rows{map[model.ServicePortKey]model.ServicePort{}, map[model.SliceKey]string{}}
	for i := range 100 {
		all.ports[model.ServicePortKey{Namespace: "default", Name: fmt.Sprint("s", i), Port: "http"}] = webPort(func(s *model.ServicePort) {
			s.ClusterIPs.V4 = netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})
		})
		all.slices[sliceKey(fmt.Sprint("s", i))] = endpointsOf(fmt.Sprint("s", i), "10.1.0.1 n1 ready", "10.1.0.2 n1 ready")
	}
	p := NewPlanner()
	p.SetBase(testBase)
	p.SetPorts(all.ports, nil)
	p.SetSlices(all.slices, nil)
	before := p.Plan()
	up, down := endpointsOf("s7", "10.1.0.1 n1 ready", "10.1.0.2 n1 ready"), endpointsOf("s7", "10.1.0.1 n1 ready", "10.1.0.2 n1")
	key := sliceKey("s7")
	for i := range 1001 {
		all.slices[key] = []string{down, up}[i%2]
		p.SetSlices(map[model.SliceKey]string{key: all.slices[key]}, nil)
	}
	after := p.Plan()
	changed := 0
	for k, f := range after.Fronts {
		if before.Fronts[k] != f {
			changed++
		}
	}
	if want := all.plan(); changed != 1 || !maps.Equal(after.Fronts, want.Fronts) || !slices.Equal(after.Lines, want.Lines) {
		t.Errorf("%d fronts changed, want 1, and\n%s", changed, show(want))
	}
}

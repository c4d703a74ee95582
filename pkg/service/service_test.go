package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var testBase = Base{Node: "n1", Zone: "a", NodeAddrs: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
	Ours: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("192.0.2.0/28")}}

var web = model.ServicePortKey{Namespace: "default", Name: "web", Port: "http"}

func webPort(change func(*model.ServicePort)) model.ServicePort {
	s := model.ServicePort{Protocol: 6, Port: 80, ClusterIPs: model.Addrs{V4: addr("10.96.0.10")}, CreatedUnix: 100}
	if change != nil {
		change(&s)
	}
	return s
}

// endpoints makes a slice of texts like "10.1.0.1 n1 ready", "10.1.0.2 n2
// terminating zones=a,b nodes=n2".
func endpoints(lines ...string) string {
	s := wire.Slice{Service: "web", Ports: []wire.Port{{Name: "http", Protocol: 6, Port: 8080}}}
	for _, l := range lines {
		f := strings.Fields(l)
		e := wire.SliceEndpoint{Addr: addr(f[0]), Node: f[1]}
		for _, x := range f[2:] {
			switch {
			case x == "ready":
				e.Ready, e.Serving = true, true
			case x == "terminating":
				e.Serving, e.Terminating = true, true
			case strings.HasPrefix(x, "zones="):
				e.ForZones = x[len("zones="):]
			case strings.HasPrefix(x, "nodes="):
				e.ForNodes = x[len("nodes="):]
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return string(s.Encode())
}

// show writes fronts as text, one a line.
func show(p *Plan) string {
	var out []string
	for k, f := range p.Fronts {
		if k == (FrontKey{}) {
			continue
		}
		text := fmt.Sprintf("%v: %v", k, f.Verdict)
		for _, a := range f.Slots.All(k.Addr.Is6()) {
			text += " " + a.Addr().String()
		}
		if f.AffinitySeconds > 0 {
			text += fmt.Sprintf(" stay %d", f.AffinitySeconds)
		}
		if f.Ranges != "" {
			text += " for " + f.Ranges
		}
		out = append(out, text)
	}
	slices.Sort(out)
	for _, l := range p.Lines {
		out = append(out, "! "+l.Message)
	}
	return strings.Join(out, "\n")
}

// TestFronts (invariant V7): what the API says of a Service against where packets go.
func TestFronts(t *testing.T) {
	three := endpoints("10.1.0.1 n1 ready", "10.1.1.1 n2 ready", "10.1.1.2 n2 ready")
	for _, tt := range []struct {
		name   string
		change func(*model.ServicePort)
		slice  string
		want   string
	}{
		{"cluster IP", nil, three, "10.96.0.10:80 6: forward 10.1.0.1 10.1.1.1 10.1.1.2"},
		{"no backend", nil, endpoints("10.1.0.1 n1"), "10.96.0.10:80 6: reject"},
		{"no slice", nil, "", "10.96.0.10:80 6: reject"},
		{"not ready ones get nothing", nil, endpoints("10.1.0.1 n1", "10.1.1.1 n2 ready"), "10.96.0.10:80 6: forward 10.1.1.1"},
		{"terminating ones serve on where there is no other", nil, endpoints("10.1.0.1 n1 terminating", "10.1.1.1 n2"), "10.96.0.10:80 6: forward 10.1.0.1"},
		{"terminating ones get nothing where there is another", nil, endpoints("10.1.0.1 n1 terminating", "10.1.1.1 n2 ready"), "10.96.0.10:80 6: forward 10.1.1.1"},
		{"affinity", func(s *model.ServicePort) { s.AffinitySeconds = 600 }, endpoints("10.1.0.1 n1 ready"), "10.96.0.10:80 6: forward 10.1.0.1 stay 600"},
		{"node port", func(s *model.ServicePort) { s.NodePort = 30080 }, endpoints("10.1.1.1 n2 ready"),
			"10.96.0.10:80 6: forward 10.1.1.1\n192.0.2.1:30080 6: forward 10.1.1.1"},
		{"internal policy local", func(s *model.ServicePort) { s.InternalLocal = true }, three, "10.96.0.10:80 6: forward 10.1.0.1"},
		{"internal policy local, none here", func(s *model.ServicePort) { s.InternalLocal = true }, endpoints("10.1.1.1 n2 ready"), "10.96.0.10:80 6: drop"},
		{"external policy local", func(s *model.ServicePort) { s.ExternalLocal = true; s.ExternalIPs = "198.51.100.7" }, three,
			"10.96.0.10:80 6: forward 10.1.0.1 10.1.1.1 10.1.1.2\n198.51.100.7:80 6 (from outside): forward 10.1.0.1\n198.51.100.7:80 6: forward 10.1.0.1 10.1.1.1 10.1.1.2"},
		{"external policy local, none here", func(s *model.ServicePort) { s.ExternalLocal = true; s.ExternalIPs = "198.51.100.7" }, endpoints("10.1.1.1 n2 ready"),
			"10.96.0.10:80 6: forward 10.1.1.1\n198.51.100.7:80 6 (from outside): drop\n198.51.100.7:80 6: forward 10.1.1.1"},
		{"load balancer with source ranges", func(s *model.ServicePort) {
			s.LoadBalancerIPs, s.SourceRanges = "198.51.100.7", "203.0.113.0/24 203.0.113.7/32 2001:db8::/32"
		}, endpoints("10.1.0.1 n1 ready"), "10.96.0.10:80 6: forward 10.1.0.1\n198.51.100.7:80 6: forward 10.1.0.1 for 203.0.113.0/24"},
		{"source ranges of the other family only", func(s *model.ServicePort) { s.LoadBalancerIPs, s.SourceRanges = "198.51.100.7", "2001:db8::/32" },
			endpoints("10.1.0.1 n1 ready"), "10.96.0.10:80 6: forward 10.1.0.1\n198.51.100.7:80 6: drop"},
		{"hints for the zone", nil, endpoints("10.1.0.1 n1 ready zones=b", "10.1.1.1 n2 ready zones=a,c"), "10.96.0.10:80 6: forward 10.1.1.1"},
		{"hints for the node come first", nil, endpoints("10.1.0.1 n1 ready zones=b nodes=n1", "10.1.1.1 n2 ready zones=a nodes=n2"), "10.96.0.10:80 6: forward 10.1.0.1"},
		{"one without hint: all", nil, endpoints("10.1.0.1 n1 ready", "10.1.1.1 n2 ready zones=a"), "10.96.0.10:80 6: forward 10.1.0.1 10.1.1.1"},
		{"no hint for us: all", nil, endpoints("10.1.0.1 n1 ready zones=b", "10.1.1.1 n2 ready zones=b"), "10.96.0.10:80 6: forward 10.1.0.1 10.1.1.1"},
		{"an external address of a node", func(s *model.ServicePort) { s.ExternalIPs = "192.0.2.2" }, endpoints("10.1.0.1 n1 ready"),
			"10.96.0.10:80 6: forward 10.1.0.1\n! external address 192.0.2.2 is refused: it lies in 192.0.2.0/28, which nodes, pods or Services use"},
		{"an external address of loopback", func(s *model.ServicePort) { s.ExternalIPs = "127.0.0.1" }, endpoints("10.1.0.1 n1 ready"),
			"10.96.0.10:80 6: forward 10.1.0.1\n! external address 127.0.0.1 can't be reached from outside"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := NewPlanner()
			p.SetBase(testBase)
			p.SetPorts(map[model.ServicePortKey]model.ServicePort{web: webPort(tt.change)}, nil)
			if tt.slice != "" {
				p.SetSlices(map[model.SliceKey]string{{Cluster: "west", Namespace: "default", Name: "web-1"}: tt.slice}, nil)
			}
			if got := show(p.Plan()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestConflict: of two Services with one external address the older has it, and
// the other one as soon as that is gone.
func TestConflict(t *testing.T) {
	p := NewPlanner()
	p.SetBase(testBase)
	key := FrontKey{Addr: addr("198.51.100.7"), Protocol: 6, Port: 80}
	old, young := web, model.ServicePortKey{Namespace: "a", Name: "a"}
	external := func(created int64, clusterIP string) model.ServicePort {
		return webPort(func(s *model.ServicePort) {
			s.ExternalIPs, s.CreatedUnix, s.ClusterIPs.V4, s.AffinitySeconds = "198.51.100.7", created, addr(clusterIP), uint32(created)
		})
	}
	p.SetPorts(map[model.ServicePortKey]model.ServicePort{old: external(1, "10.96.0.1"), young: external(2, "10.96.0.2")}, nil)
	p.SetSlices(map[model.SliceKey]string{{Namespace: "default", Name: "web-1"}: endpoints("10.1.0.1 n1 ready")}, nil)
	plan := p.Plan()
	if f := plan.Fronts[key]; f.AffinitySeconds != 1 || len(plan.Lines) != 1 || plan.Lines[0].Object != "a/a" {
		t.Errorf("front %+v, lines %+v; want that of default/web and a line for a/a", f, plan.Lines)
	}
	p.SetPorts(nil, []model.ServicePortKey{old})
	plan = p.Plan()
	if f, ok := plan.Fronts[key]; !ok || f.Verdict != Reject || len(plan.Lines) != 0 {
		t.Errorf("front %+v, lines %+v; want that of a/a, which has no backend", f, plan.Lines)
	}
}

// TestIncremental (invariant V1): whatever the order of changes, the plan is that of a planner
// which sees the last rows only, and what was said of changes adds up to it.
func TestIncremental(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := NewPlanner()
		p.SetBase(testBase)
		ports, slices := map[model.ServicePortKey]model.ServicePort{}, map[model.SliceKey]string{}
		sum := map[FrontKey]Front{{}: {}}
		for i := range 40 {
			step(r, p, ports, slices)
			if r.IntN(3) == 0 || i == 39 {
				apply(t, sum, p.Update())
			}
		}
		fresh := NewPlanner()
		fresh.SetSlices(maps.Clone(slices), nil)
		fresh.SetPorts(maps.Clone(ports), nil)
		fresh.SetBase(testBase)
		if got, want := p.Plan(), fresh.Plan(); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, show(got), show(want))
		} else if !maps.Equal(sum, want.Fronts) {
			t.Fatalf("seed %d: changes add up to\n%s\nwant\n%s", seed, show(&Plan{Fronts: sum}), show(want))
		}
	}
}

// apply makes changes to fronts, each of which has to change something.
func apply(t *testing.T, fronts map[FrontKey]Front, p *Patch) {
	t.Helper()
	if p == nil {
		return
	}
	for k, f := range p.Set {
		if old, was := fronts[k]; was && old == f {
			t.Fatalf("%v is said to have changed, and has not", k)
		}
		fronts[k] = f
	}
	for _, k := range p.Del {
		if _, was := fronts[k]; !was {
			t.Fatalf("%v is said to be gone, and was not there", k)
		}
		delete(fronts, k)
	}
	if len(fronts) != p.Total+1 {
		t.Fatalf("%d fronts, want %d and the rules", len(fronts), p.Total)
	}
}

// step changes one row of both the planner and the maps.
func step(r *rand.Rand, p *Planner, ports map[model.ServicePortKey]model.ServicePort, slices map[model.SliceKey]string) {
	name := []string{"web", "db", "api"}[r.IntN(3)]
	if r.IntN(2) == 0 {
		key := model.ServicePortKey{Namespace: "default", Name: name, Port: "http"}
		if r.IntN(4) == 0 {
			delete(ports, key)
			p.SetPorts(nil, []model.ServicePortKey{key})
			return
		}
		ports[key] = webPort(func(s *model.ServicePort) {
			s.ClusterIPs.V4 = netip.AddrFrom4([4]byte{10, 96, 0, byte(r.IntN(3))})
			s.CreatedUnix, s.NodePort = int64(r.IntN(2)), uint16(30000+r.IntN(2))
			s.ExternalLocal, s.HealthCheckNodePort = r.IntN(2) == 0, uint16(r.IntN(2)*(31000+len(name)))
			s.ExternalIPs = []string{"", "198.51.100.7", "192.0.2.3"}[r.IntN(3)]
		})
		p.SetPorts(map[model.ServicePortKey]model.ServicePort{key: ports[key]}, nil)
		return
	}
	key := model.SliceKey{Namespace: "default", Name: fmt.Sprint(name, r.IntN(2))}
	if r.IntN(4) == 0 {
		delete(slices, key)
		p.SetSlices(nil, []model.SliceKey{key})
		return
	}
	s := wire.Slice{Service: name, Ports: []wire.Port{{Name: "http", Protocol: 6, Port: 8080}}}
	for i := range r.IntN(4) {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Ready: r.IntN(3) > 0, Serving: true, Node: "n1"})
	}
	slices[key] = string(s.Encode())
	p.SetSlices(map[model.SliceKey]string{key: slices[key]}, nil)
}

// TestHostPorts: a port of the node leads to its pod, on every address or on one,
// and goes with the pod.
func TestHostPorts(t *testing.T) {
	p := NewPlanner()
	base := testBase
	base.HostAddrs = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2"), addr("2001:db8::1")}
	p.SetBase(base)
	key := model.PodKey{ContainerID: "c1", IfName: "eth0"}
	pod := model.Pod{Key: key, Namespace: "default", Name: "web", IPs: model.Addrs{V4: addr("10.1.0.2")}, HostPorts: model.JoinHostPorts([]model.HostPort{
		{Protocol: 6, Host: 8080, Container: 80}, {Protocol: 17, Host: 53, Container: 5353, Addr: addr("192.0.2.2")}})}
	p.SetPods(map[model.PodKey]model.Pod{key: pod, {ContainerID: "c2", IfName: "eth0"}: {Namespace: "default", Name: "other"}}, nil)
	want := "192.0.2.1:8080 6: forward 10.1.0.2\n192.0.2.2:53 17: forward 10.1.0.2\n192.0.2.2:8080 6: forward 10.1.0.2"
	if got := show(p.Plan()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	base.HostAddrs = base.HostAddrs[:1] // the node loses its other addresses
	p.SetBase(base)
	if got, want := show(p.Plan()), "192.0.2.1:8080 6: forward 10.1.0.2"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	p.SetPods(nil, []model.PodKey{key})
	if got := show(p.Plan()); got != "" {
		t.Errorf("after the pod: %s", got)
	}
}

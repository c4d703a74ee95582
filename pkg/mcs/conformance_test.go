package mcs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// TestConformance decides each spec of the upstream suite as far as objects show
// it; where it also sends packets or asks DNS, the objects that these need are
// looked at (invariant G3 among them). The numbers are those of the suite in our notes. Of 17 to 20 and 27 the
// rest is the resolver's and the data path's.
func TestConformance(t *testing.T) {
	both := []string{"east", "west"}
	dual := func(e *wire.Export) { e.IPFamilies = []string{IPv4, IPv6} }
	type check = func(*testing.T, *world)
	each := func(f func(t *testing.T, w *world, in string)) check {
		return func(t *testing.T, w *world) {
			for _, in := range both {
				f(t, w, in)
			}
		}
	}
	conflict := func(reasons string) check {
		return each(func(t *testing.T, w *world, in string) {
			if got := w.status(in).Conflict; got.Status != conditionTrue || got.Reason != reasons {
				t.Errorf("%s: conflict %+v, want True for %s", in, got, reasons)
			}
		})
	}
	for _, tt := range []struct {
		name  string
		do    func(*world)
		check []check
	}{
		{"01 what is not exported is no backend", func(w *world) { w.service("east", hello()); w.pods("east", hello(), "10.1.0.1") },
			[]check{gone}},
		{"02 the import lives while one exports", func(w *world) {
			w.all("east", 20, hello())
			w.all("west", 10, hello())
			w.settle()
			w.unexport("east")
		}, []check{each(func(t *testing.T, w *world, in string) {
			if row, _, ok := w.imported(in); !ok || row.Clusters != "west" {
				t.Errorf("%s: import %+v, %v", in, row, ok)
			}
		})}},
		{"02 and goes with the last", func(w *world) {
			w.all("east", 20, hello(), "10.1.0.1")
			w.all("west", 10, hello(), "10.2.0.1")
			w.settle()
			w.unexport("east")
			w.settle()
			w.unexport("west")
		}, []check{gone}},
		{"03 an export makes imports everywhere", func(w *world) { w.all("east", 20, hello()) }, []check{each(func(t *testing.T, w *world, in string) {
			if _, spec, ok := w.imported(in); !ok || spec.Type != ClusterSetIP {
				t.Errorf("%s: %+v, %v", in, spec, ok)
			}
		}), func(t *testing.T, w *world) {
			if got := w.status("east"); got.Valid.Status != conditionTrue || got.Ready.Reason != ReasonExported || got.Conflict.Reason != ReasonNoConflicts {
				t.Errorf("conditions %+v", got)
			}
		}}},
		{"03 unexport takes everything back", func(w *world) { w.all("east", 20, hello(), "10.1.0.1"); w.settle(); w.unexport("east") }, []check{gone}},
		{"04 05 06 affinity, internal policy, distribution", func(w *world) {
			w.all("east", 20, hello(func(e *wire.Export) { e.TrafficDistribution = "PreferClose" }))
		},
			[]check{each(func(t *testing.T, w *world, in string) {
				_, spec, _ := w.imported(in)
				if spec.SessionAffinity != "ClientIP" || spec.AffinitySeconds != 10 || spec.InternalPolicy != "Cluster" || spec.TrafficDistribution != "PreferClose" {
					t.Errorf("%s: %+v", in, spec)
				}
			})}},
		{"07 an address for each family", func(w *world) { w.all("east", 20, hello(dual)) }, []check{each(func(t *testing.T, w *world, in string) {
			row, spec, _ := w.imported(in)
			if ips := strings.Fields(row.IPs); len(ips) != 2 || !slices.Equal(spec.IPFamilies, []string{IPv4, IPv6}) || strings.Contains(ips[0], ":") || !strings.Contains(ips[1], ":") || row.Ready.Reason != ReasonReady {
				t.Errorf("%s: ips %v, families %v, %+v", in, ips, spec.IPFamilies, row.Ready)
			}
		})}},
		{"08 ports", func(w *world) {
			w.all("east", 20, hello(ports(wire.Port{Name: "h2", AppProtocol: "kubernetes.io/h2c", Protocol: 6, Port: 42})))
		},
			[]check{each(func(t *testing.T, w *world, in string) {
				_, spec, _ := w.imported(in)
				if d := cmp.Diff([]wire.Port{{Name: "h2", AppProtocol: "kubernetes.io/h2c", Protocol: 6, Port: 42}}, spec.Ports); d != "" {
					t.Errorf("%s: %s", in, d)
				}
			})}},
		{"09 union of ports", func(w *world) {
			w.all("east", 20, hello())
			w.all("west", 10, hello(ports(tcp("tcp", 42), wire.Port{Name: "sctp", Protocol: 132, Port: 142})))
		}, []check{each(func(t *testing.T, w *world, in string) {
			_, spec, _ := w.imported(in)
			want := append(hello().Ports, wire.Port{Name: "sctp", Protocol: 132, Port: 142})
			if d := cmp.Diff(want, spec.Ports); d != "" {
				t.Errorf("%s: %s", in, d)
			}
		}), conflict(ReasonPort)}},
		{"10 same name, other port: the first wins", func(w *world) {
			w.all("east", 20, hello(ports(tcp("tcp", 42))))
			w.all("west", 10, hello(ports(tcp("tcp", 4242))))
		}, []check{each(func(t *testing.T, w *world, in string) {
			_, spec, _ := w.imported(in)
			if d := cmp.Diff([]wire.Port{tcp("tcp", 42)}, spec.Ports); d != "" {
				t.Errorf("%s: %s", in, d)
			}
			if m := w.status(in).Conflict.Message; !strings.Contains(m, "tcp TCP 4242 of west is not used, tcp TCP 42 of east is") {
				t.Errorf("%s: message %q", in, m)
			}
		}), conflict(ReasonPort)}},
		{"11 12 headless: an import without addresses", func(w *world) { w.all("east", 20, hello(headless), "10.1.0.1") }, []check{each(func(t *testing.T, w *world, in string) {
			row, spec, ok := w.imported(in)
			if !ok || spec.Type != Headless || row.IPs != "" || len(spec.IPFamilies) != 1 || row.Ready.Reason != ReasonReady || len(w.clusters[in].plan.Services) != 0 {
				t.Errorf("%s: %+v %+v", in, row, spec)
			}
		})}},
		{"13 ExternalName", func(w *world) {
			w.clusters["east"].planner.SetServices(map[model.ServiceKey]Service{web: {ExternalName: true}}, nil)
			w.export("east", 20, nil)
		}, []check{gone, func(t *testing.T, w *world) {
			if got := w.status("east"); got.Valid.Status != conditionFalse || got.Valid.Reason != ReasonInvalidType || got.Conflict != (Condition{}) {
				t.Errorf("conditions %+v", got)
			}
		}}},
		{"14 headless against not", func(w *world) { w.all("east", 20, hello()); w.all("west", 10, hello(headless)) }, []check{each(func(t *testing.T, w *world, in string) {
			if _, spec, _ := w.imported(in); spec.Type != ClusterSetIP {
				t.Errorf("%s: type %s", in, spec.Type)
			}
		}), conflict(ReasonType)}},
		{"15 exported labels and annotations", func(w *world) { w.service("east", hello()); w.export("east", 20, map[string]string{"a": "b"}) }, []check{each(func(t *testing.T, w *world, in string) {
			if _, spec, _ := w.imported(in); !maps.Equal(spec.Labels, map[string]string{"a": "b"}) || !maps.Equal(spec.Annotations, spec.Labels) {
				t.Errorf("%s: %v %v", in, spec.Labels, spec.Annotations)
			}
		})}},
		{"16 conflicting sets: the first wins whole", func(w *world) {
			w.service("east", hello())
			w.service("west", hello())
			w.export("east", 20, map[string]string{"a": "b"})
			w.export("west", 10, map[string]string{"a": "x", "c": "d"})
		}, []check{each(func(t *testing.T, w *world, in string) {
			if _, spec, _ := w.imported(in); !maps.Equal(spec.Labels, map[string]string{"a": "b"}) {
				t.Errorf("%s: %v", in, spec.Labels)
			}
		}), conflict(ReasonLabels + "," + ReasonAnnotations)}},
		{"17 18 20 a VIP with backends on each port", func(w *world) { w.all("east", 20, hello(), "10.1.0.1") }, []check{each(func(t *testing.T, w *world, in string) {
			row, _, _ := w.imported(in)
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}, "UDP/42": {"10.1.0.1"}}, w.backends(in)); d != "" || row.IPs == "" {
				t.Errorf("%s: ips %q: %s", in, row.IPs, d)
			}
		})}},
		{"19 the Service itself is left alone", func(w *world) { w.all("east", 20, hello(), "10.1.0.1") }, []check{func(t *testing.T, w *world) {
			if _, ours := w.clusters["east"].plan.Services[web]; ours {
				t.Error("the plan holds the user's Service")
			}
		}}},
		{"21 a local Service that is not exported is no backend", func(w *world) {
			w.all("east", 20, hello(), "10.1.0.1")
			w.service("west", hello())
			w.pods("west", hello(), "10.2.0.1")
		}, []check{each(func(t *testing.T, w *world, in string) {
			if got := w.backends(in)["TCP/42"]; !slices.Equal(got, []string{"10.1.0.1"}) {
				t.Errorf("%s: %v", in, got)
			}
		})}},
		{"22 same port name: only to those who expose the port", func(w *world) {
			w.all("east", 20, hello(ports(tcp("tcp", 42))), "10.1.0.1")
			w.all("west", 10, hello(ports(tcp("tcp", 4242))), "10.2.0.1")
		}, []check{each(func(t *testing.T, w *world, in string) {
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}}, w.backends(in)); d != "" {
				t.Errorf("%s: %s", in, d)
			}
		}), conflict(ReasonPort)}},
		{"23 different names: each port to its cluster", func(w *world) {
			w.all("east", 20, hello(ports(tcp("tcp", 42))), "10.1.0.1")
			w.all("west", 10, hello(ports(tcp("tcp-2", 4242))), "10.2.0.1")
		}, []check{each(func(t *testing.T, w *world, in string) {
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}, "TCP/4242": {"10.2.0.1"}}, w.backends(in)); d != "" {
				t.Errorf("%s: %s", in, d)
			}
		}), conflict(ReasonPort)}},
		{"24 slices in every cluster, a family each", func(w *world) {
			w.all("east", 20, hello(dual), "10.1.0.1")
			w.pods("east", hello(dual), "fd00:1::1")
		}, []check{each(func(t *testing.T, w *world, in string) {
			seen := map[string]int{}
			for key, row := range w.clusters[in].plan.Slices {
				labels := row.Labels()
				if labels[LabelServiceName] != "web" || labels[LabelSourceCluster] != "east" || labels["kubernetes.io/service-name"] == "web" || key.Namespace != "shop" {
					t.Errorf("%s: %v %v", in, key, labels)
				}
				s, _ := wire.DecodeSlice([]byte(row.Slice))
				seen[familyOf(s.Endpoints[0].Addr)]++
			}
			if row, _, _ := w.imported(in); !maps.Equal(seen, map[string]int{IPv4: 1, IPv6: 1}) || !row.Slices {
				t.Errorf("%s: slices %v, %+v", in, seen, row)
			}
		})}},
		{"25 26 27 headless: every endpoint with its host name, no label of the Service", func(w *world) { w.all("east", 20, hello(headless), "10.1.0.1", "10.1.0.2") }, []check{each(func(t *testing.T, w *world, in string) {
			if n := len(w.clusters[in].plan.Slices); n != 1 {
				t.Fatalf("%s: %d slices", in, n)
			}
			for _, row := range w.clusters[in].plan.Slices {
				if d := cmp.Diff(map[string]string{LabelServiceName: "web", LabelSourceCluster: "east"}, row.Labels()); d != "" {
					t.Errorf("%s: %s", in, d)
				}
				s, _ := wire.DecodeSlice([]byte(row.Slice))
				if len(s.Endpoints) != 2 || s.Endpoints[0].Hostname != "web-0" || s.Endpoints[1].Hostname != "web-1" || !s.Endpoints[0].Ready || s.Endpoints[0].Zone != "a" || len(s.Ports) != 2 {
					t.Errorf("%s: %+v", in, s)
				}
			}
		})}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, both...)
			w.settle()
			tt.do(w)
			w.settle()
			for _, f := range tt.check {
				f(t, w)
			}
		})
	}
}

// gone checks that no cluster holds anything derived.
func gone(t *testing.T, w *world) {
	for name, c := range w.clusters {
		if n := len(c.plan.Imports) + len(c.plan.Services) + len(c.plan.Slices) + len(c.plan.Wire); n != 0 {
			t.Errorf("%s holds %d rows: %v %v %v %v", name, n, c.plan.Imports, c.plan.Services, c.plan.Slices, slices.Collect(maps.Keys(c.plan.Wire)))
		}
	}
}

// TestThreeClusters: precedence, ties and continuity with more than two.
func TestThreeClusters(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.all("c", 30, hello(ports(tcp("http", 80))), "10.3.0.1")
	w.all("b", 20, hello(ports(tcp("http", 8080), tcp("web", 80))), "10.2.0.1")
	w.all("a", 20, hello(ports(tcp("http", 8080), tcp("adm", 9))), "10.1.0.1")
	w.settle()
	for in := range w.clusters {
		row, spec, _ := w.imported(in)
		if d := cmp.Diff([]wire.Port{tcp("http", 80), tcp("adm", 9)}, spec.Ports); d != "" || row.Clusters != "a b c" {
			t.Errorf("%s: clusters %q: %s", in, row.Clusters, d)
		}
		// b's backends expose 80, under another name; 8080 is nobody's.
		if d := cmp.Diff(map[string][]string{"TCP/80": {"10.2.0.1", "10.3.0.1"}, "TCP/9": {"10.1.0.1"}}, w.backends(in)); d != "" {
			t.Errorf("%s: %s", in, d)
		}
	}
	if d := cmp.Diff("ports: http TCP 8080 of a is not used, http TCP 80 of c is, http TCP 8080 of b is not used, http TCP 80 of c is, "+
		"web TCP 80 of b goes by what http TCP 80 of c says, adm TCP 9 is used, but only 1 of 3 clusters have it; "+
		"the oldest export, of "+moment(now-30_000)+", is cluster c's", w.status("a").Conflict.Message); d != "" {
		t.Error(d)
	}
	ip, _, _ := w.imported("a")
	w.unexport("c")
	w.settle()
	after, spec, _ := w.imported("a") // a and b are of one age: the smaller name wins
	if d := cmp.Diff([]wire.Port{tcp("http", 8080), tcp("adm", 9), tcp("web", 80)}, spec.Ports); d != "" || after.IPs != ip.IPs {
		t.Errorf("IPs %s, were %s: %s", after.IPs, ip.IPs, d)
	}
	if fmt.Sprint(w.status("c")) != fmt.Sprint(ExportStatus{}) {
		t.Errorf("c, which exports nothing, has conditions %v", w.status("c"))
	}
}

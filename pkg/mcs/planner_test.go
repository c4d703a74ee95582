package mcs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// TestRequirements looks at what the conformance suite does not, by the numbers of
// the KEP's requirements in our notes.
func TestRequirements(t *testing.T) {
	planner := func(w *world, in string) *Planner { return w.clusters[in].planner }
	for _, tt := range []struct {
		name  string
		do    func(*world)
		check func(*testing.T, *world)
	}{
		{"N8 labels of the Service itself do not travel", func(w *world) {
			w.all("east", 20, hello(func(e *wire.Export) { e.Labels = map[string]string{"of": "service"} }))
		}, func(t *testing.T, w *world) {
			if _, spec, _ := w.imported("west"); spec.Labels != nil {
				t.Error(spec.Labels)
			}
		}},
		{"N9 no Service", func(w *world) { w.export("east", 20, nil) }, func(t *testing.T, w *world) {
			got := w.status("east")
			if got.Valid.Reason != ReasonNoService || got.Valid.Status != conditionFalse || got.Ready.Reason != ReasonPending {
				t.Errorf("%+v", got)
			}
			gone(t, w)
		}},
		{"N9 the Service goes: so does the export", func(w *world) {
			w.all("east", 20, hello(), "10.1.0.1")
			w.settle()
			planner(w, "east").SetServices(nil, []model.ServiceKey{web})
		}, gone},
		{"N11 no namespace, no import", func(w *world) {
			planner(w, "west").SetNamespaces(nil, []string{"shop"})
			w.all("east", 20, hello(), "10.1.0.1")
		}, func(t *testing.T, w *world) {
			if _, _, ok := w.imported("west"); ok || len(w.clusters["west"].plan.Slices) != 0 {
				t.Error("west imports without a namespace")
			}
			if _, _, ok := w.imported("east"); !ok {
				t.Error("the exporter does not import")
			}
			planner(w, "west").SetNamespaces([]string{"shop"}, nil)
			w.settle()
			if _, _, ok := w.imported("west"); !ok || len(w.clusters["west"].plan.Slices) != 1 {
				t.Error("west does not import once the namespace is there")
			}
		}},
		{"N14 a family that Services here can't have", func(w *world) {
			w.clusters["west"] = &cluster{planner: NewPlanner(Base{Cluster: "west", Families: []string{IPv4}}, now)}
			planner(w, "west").SetNamespaces([]string{"shop"}, nil)
			planner(w, "west").SetPeers(map[string]Peer{"east": {}})
			w.all("east", 20, hello(func(e *wire.Export) { e.IPFamilies = []string{IPv6} }), "fd00::1")
		}, func(t *testing.T, w *world) {
			row, spec, _ := w.imported("west")
			if row.Ready.Reason != ReasonNoFamily || row.Ready.Status != conditionFalse || len(spec.IPFamilies) == 0 || len(w.clusters["west"].plan.Services) != 0 || len(w.clusters["west"].plan.Slices) != 0 {
				t.Errorf("%+v %+v", row, spec)
			}
			if row, _, _ := w.imported("east"); row.Ready.Reason != ReasonReady {
				t.Errorf("east: %+v", row.Ready)
			}
		}},
		{"N14 no address yet", func(w *world) {
			w.all("east", 20, hello())
			w.settle()
			planner(w, "west").SetAddrs(nil, []model.ServiceKey{DerivedKey(web, IPv4)})
		}, func(t *testing.T, w *world) {
			if row, _, _ := w.imported("west"); row.Ready.Reason != ReasonPending || row.IPs != "" {
				t.Errorf("%+v", row)
			}
		}},
		{"N14 N17 one of two addresses is none", func(w *world) {
			w.all("east", 20, hello(func(e *wire.Export) { e.IPFamilies = []string{IPv4, IPv6} }))
			w.settle()
			planner(w, "west").SetAddrs(map[model.ServiceKey]DerivedAddrs{DerivedKey(web, IPv4): {"web", "10.96.0.9"}}, nil)
		}, func(t *testing.T, w *world) {
			if row, _, _ := w.imported("west"); row.Ready.Reason != ReasonPending || row.IPs != "" {
				t.Errorf("%+v", row)
			}
		}},
		{"N17 addresses come in the order of the families", func(w *world) {
			w.all("east", 20, hello(func(e *wire.Export) { e.IPFamilies = []string{IPv6, IPv4} }))
			w.settle()
			planner(w, "west").SetAddrs(map[model.ServiceKey]DerivedAddrs{DerivedKey(web, IPv4): {"web", "fd00::9 10.96.0.9"}}, nil)
		}, func(t *testing.T, w *world) {
			if row, _, _ := w.imported("west"); row.IPs != "10.96.0.9 fd00::9" {
				t.Errorf("%+v", row)
			}
		}},
		{"N17 some backends are not reachable by one family", func(w *world) {
			w.all("east", 20, hello(func(e *wire.Export) { e.IPFamilies = []string{IPv6, IPv4} }))
			w.all("west", 10, hello())
		}, func(t *testing.T, w *world) {
			if got := w.status("west").Conflict; got.Reason != ReasonFamily {
				t.Errorf("%+v", got)
			}
			if _, spec, _ := w.imported("west"); !slices.Equal(spec.IPFamilies, []string{IPv4, IPv6}) {
				t.Errorf("%v", spec.IPFamilies)
			}
		}},
		{"N17 families that others have besides are no conflict", func(w *world) {
			w.all("east", 20, hello())
			w.all("west", 10, hello(func(e *wire.Export) { e.IPFamilies = []string{IPv6, IPv4} }), "10.2.0.1")
			planner(w, "west").SetSlices(map[model.SliceKey]string{{Cluster: "west", Namespace: "shop", Name: "six"}: string(wire.Slice{Service: "web", Ports: hello().Ports,
				Endpoints: []wire.SliceEndpoint{{Addr: netip.MustParseAddr("fd00::1")}}}.Encode())}, nil)
		}, func(t *testing.T, w *world) {
			if got := w.status("west").Conflict; got.Reason != ReasonNoConflicts {
				t.Errorf("%+v", got)
			}
			if n := len(w.clusters["east"].plan.Slices); n != 1 {
				t.Errorf("%d slices, one of a family that the import has not", n)
			}
		}},
		{"N21 all reasons together", func(w *world) {
			w.service("east", hello())
			w.export("east", 20, map[string]string{"a": "b"})
			w.all("west", 10, wire.Export{Type: Headless, SessionAffinity: "None", InternalPolicy: "Local", TrafficDistribution: "PreferClose", IPFamilies: []string{IPv6}})
		}, func(t *testing.T, w *world) {
			want := strings.Join([]string{ReasonPort, ReasonType, ReasonAffinity, ReasonInternalPolicy, ReasonDistribution, ReasonLabels, ReasonAnnotations, ReasonFamily}, ",")
			for in := range w.clusters {
				if got := w.status(in).Conflict; got.Reason != want {
					t.Errorf("%s: %s", in, got.Reason)
				}
			}
			if d := cmp.Diff("ports: tcp TCP 42 is used, but only 1 of 2 clusters have it, udp UDP 42 is used, but only 1 of 2 clusters have it; "+
				"type: ClusterSetIP of east is used, not Headless of west; sessionAffinity: ClientIP of east is used, not None of west; "+
				"internalTrafficPolicy: Cluster of east is used, not Local of west; trafficDistribution: (none) of east is used, not PreferClose of west; "+
				"exportedLabels: a=b of east is used, not (none) of west; exportedAnnotations: a=b of east is used, not (none) of west; "+
				"ipFamilies: IPv4 of east is used, not IPv6 of west; the oldest export, of 2027-01-15T07:59:40Z, is cluster east's", w.status("west").Conflict.Message); d != "" {
				t.Error(d)
			}
		}},
		{"N21 the config of session affinity", func(w *world) {
			w.all("east", 20, hello())
			w.all("west", 10, hello(func(e *wire.Export) { e.AffinitySeconds = 99 }))
		}, func(t *testing.T, w *world) {
			if got := w.status("east").Conflict; got.Reason != ReasonAffinityConfig {
				t.Errorf("%+v", got)
			}
		}},
		{"N22 a tie goes to the smaller name", func(w *world) {
			w.all("west", 10, hello(headless))
			w.all("east", 10, hello())
		}, func(t *testing.T, w *world) {
			if _, spec, _ := w.imported("west"); spec.Type != ClusterSetIP {
				t.Error(spec.Type)
			}
		}},
		{"N23 an unnamed port beside named ones gets a name in the derived Service", func(w *world) {
			w.all("east", 20, hello(ports(tcp("", 42))), "10.1.0.1")
			w.all("west", 10, hello(ports(tcp("unnamed-tcp-42", 43))), "10.2.0.1")
		}, func(t *testing.T, w *world) {
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}, "TCP/43": {"10.2.0.1"}}, w.backends("west")); d != "" {
				t.Error(d)
			}
			if _, spec, _ := w.imported("west"); spec.Ports[0].Name != "" {
				t.Errorf("the import's ports %v", spec.Ports)
			}
		}},
		{"N23 unnamed ports of different numbers", func(w *world) {
			w.all("east", 20, hello(ports(tcp("", 42))), "10.1.0.1")
			w.all("west", 10, hello(ports(tcp("", 4242))), "10.2.0.1")
		}, func(t *testing.T, w *world) {
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}}, w.backends("east")); d != "" {
				t.Error(d)
			}
		}},
		{"N26 what a peer says of nodes is not about ours", func(w *world) {
			w.all("east", 20, hello(), "10.1.0.1")
			w.settle()
			for k, v := range planner(w, "east").slices { // a peer that does not leave them out
				planner(w, "west").SetSlices(map[model.SliceKey]string{k: v}, nil)
			}
		}, func(t *testing.T, w *world) {
			for in, node := range map[string]string{"east": "n1", "west": ""} {
				for _, row := range w.clusters[in].plan.Slices {
					if s, _ := wire.DecodeSlice([]byte(row.Slice)); s.Endpoints[0].Node != node {
						t.Errorf("%s: %+v", in, s)
					}
				}
			}
		}},
		{"N27 slices of an expired cluster are withdrawn, its claim stays", func(w *world) {
			w.all("east", 20, hello(), "10.1.0.1")
			w.settle()
			planner(w, "west").SetPeers(map[string]Peer{"east": {Freshness: Expired}})
		}, func(t *testing.T, w *world) {
			if row, _, ok := w.imported("west"); !ok || row.Slices || len(w.clusters["west"].plan.Slices) != 0 || row.Clusters != "east" {
				t.Errorf("%+v, %v", row, ok)
			}
			planner(w, "west").SetPeers(map[string]Peer{"east": {Freshness: Stale}})
			w.settle()
			if row, _, _ := w.imported("west"); !row.Slices {
				t.Error("the slices do not come back")
			}
		}},
		{"a port conflict can't be made by lies about another cluster's ports", func(w *world) {
			w.all("east", 20, hello(ports(tcp("tcp", 42))), "10.1.0.1")
			w.all("west", 10, hello(ports(tcp("tcp", 43))))
			w.pods("west", hello(ports(tcp("tcp", 42), tcp("", 42))), "10.2.0.1") // its slice says more than its export
		}, func(t *testing.T, w *world) {
			if d := cmp.Diff(map[string][]string{"TCP/42": {"10.1.0.1"}}, w.backends("east")); d != "" {
				t.Error(d)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "east", "west")
			w.settle()
			tt.do(w)
			w.settle()
			tt.check(t, w)
		})
	}
}

// TestFuture: an export from the future takes no part until its time has come, in
// any cluster, and its own cluster says so.
func TestFuture(t *testing.T) {
	w := newWorld(t, "east", "west")
	w.all("east", -3600, hello(headless))
	w.all("west", 10, hello())
	w.settle()
	for in := range w.clusters {
		if row, spec, _ := w.imported(in); row.Clusters != "west" || spec.Type != ClusterSetIP {
			t.Errorf("%s: %+v", in, row)
		}
	}
	if got := w.status("east"); got.Ready.Reason != ReasonPending || !strings.Contains(got.Ready.Message, "lies in the future; set the clock of cluster east") {
		t.Errorf("%+v", got)
	}
	lines := w.clusters["west"].planner.Lines()
	if len(lines) != 1 || lines[0].Object != "export shop/web of east" || !strings.Contains(lines[0].Message, "2027-01-15T09:00:00Z lies in the future") {
		t.Errorf("%+v", lines)
	}
	due := w.clusters["west"].planner.Due()
	if due != now+3600_000-Ahead {
		t.Fatalf("due at %d", due)
	}
	for _, c := range w.clusters {
		c.planner.SetNow(due)
	}
	w.settle()
	for in, c := range w.clusters {
		if row, spec, _ := w.imported(in); row.Clusters != "east west" || spec.Type != ClusterSetIP || c.planner.Due() != 0 {
			t.Errorf("%s: %+v, due %d", in, row, c.planner.Due())
		}
	}
	w.clusters["east"].planner.SetExports(map[model.ServiceKey]Export{web: {CreatedMilli: due + Ahead}}, nil) // a clock may be a little ahead
	w.settle()
	if row, _, _ := w.imported("west"); row.Clusters != "east west" {
		t.Errorf("%+v", row)
	}
}

// TestRefused: an export that no object can hold takes no part; the others do.
func TestRefused(t *testing.T) {
	claim := func(change func(*wire.Export)) string {
		e := hello()
		e.CreatedMilli = 1
		change(&e)
		return string(e.Encode())
	}
	for name, tt := range map[string]struct{ value, want string }{
		"garbled":                   {"\x02", "unknown encoding version"},
		"no time":                   {claim(func(e *wire.Export) { e.CreatedMilli = 0 }), "it has no creation time"},
		"type":                      {claim(func(e *wire.Export) { e.Type = "ExternalName" }), `type "ExternalName" is not one of`},
		"affinity":                  {claim(func(e *wire.Export) { e.SessionAffinity = "Cookie" }), `sessionAffinity "Cookie"`},
		"affinity's time":           {claim(func(e *wire.Export) { e.AffinitySeconds = 86401 }), "over 86400"},
		"policy":                    {claim(func(e *wire.Export) { e.InternalPolicy = "Mine" }), `internalTrafficPolicy "Mine"`},
		"a newer distribution":      {claim(func(e *wire.Export) { e.TrafficDistribution = "Here" }), ""},
		"no family":                 {claim(func(e *wire.Export) { e.IPFamilies = nil }), "one or two different"},
		"a family twice":            {claim(func(e *wire.Export) { e.IPFamilies = []string{IPv4, IPv4} }), "one or two different"},
		"another family":            {claim(func(e *wire.Export) { e.IPFamilies = []string{"IPX"} }), `"IPX"`},
		"no ports":                  {claim(ports()), "it has no ports"},
		"port 0":                    {claim(ports(tcp("a", 0))), `port "a" has number 0`},
		"protocol":                  {claim(ports(wire.Port{Protocol: 1, Port: 1})), "protocol 1"},
		"port's name":               {claim(ports(tcp("A b", 1))), `port name "A b"`},
		"appProtocol":               {claim(ports(wire.Port{Protocol: 6, Port: 1, AppProtocol: "a b"})), `appProtocol "a b"`},
		"a name twice":              {claim(ports(tcp("a", 1), tcp("a", 2))), "name or the number of another"},
		"a number twice":            {claim(ports(tcp("a", 1), tcp("b", 1))), "name or the number of another"},
		"label's key":               {claim(func(e *wire.Export) { e.Labels = map[string]string{"a b": ""} }), `"a b" is not a valid key`},
		"label's value":             {claim(func(e *wire.Export) { e.Labels = map[string]string{"a": "b c"} }), `"b c" is not a valid value`},
		"a label of ours":           {claim(func(e *wire.Export) { e.Labels = map[string]string{"app.kubernetes.io/managed-by": "me"} }), "is reserved"},
		"an annotation of ours":     {claim(func(e *wire.Export) { e.Annotations = map[string]string{AnnotationGlobal: "true"} }), "is reserved"},
		"one that takes any length": {claim(func(e *wire.Export) { e.Annotations = map[string]string{"Note": strings.Repeat("x ", 500)} }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPlanner(Base{Cluster: "west"}, now)
			p.SetNamespaces([]string{"shop"}, nil)
			p.SetClaims(map[model.ExportKey]string{{Cluster: "bad", Namespace: "shop", Name: "web"}: tt.value,
				{Cluster: "good", Namespace: "shop", Name: "web"}: claim(func(e *wire.Export) { e.CreatedMilli = 2 })}, nil)
			got, lines := p.Plan().Imports[web], p.Lines()
			if tt.want == "" {
				if got.Clusters != "bad good" || len(lines) != 0 {
					t.Errorf("clusters %q, lines %v", got.Clusters, lines)
				}
				return
			}
			if got.Clusters != "good" || len(lines) != 1 || !strings.Contains(lines[0].Message, tt.want) || lines[0].Object != "export shop/web of bad" || lines[0].Remedy == "" {
				t.Errorf("clusters %q, lines %v", got.Clusters, lines)
			}
		})
	}
}

// TestPublish: what is told to others, and to whom.
func TestPublish(t *testing.T) {
	spec := hello()
	many := hello(func(e *wire.Export) {
		e.Ports = nil
		for i := range uint16(101) {
			e.Ports = append(e.Ports, tcp("p"+string(rune('a'+i/26))+string(rune('a'+i%26)), 1+i))
		}
	})
	slice := wire.Slice{Service: "web", Source: "x", Ports: spec.Ports, Endpoints: []wire.SliceEndpoint{
		{Addr: netip.MustParseAddr("10.1.0.1"), Ready: true, Zone: "a", Node: "n1", ForZones: "a", ForNodes: "n1"}, {Addr: netip.MustParseAddr("192.0.2.1"), Ready: true}}}
	told := slice
	told.Source, told.Endpoints = "", []wire.SliceEndpoint{{Addr: netip.MustParseAddr("10.1.0.1"), Ready: true, Zone: "a"}}
	export := spec
	export.CreatedMilli = 5
	shared := string(wire.Service{Ports: spec.Ports, AffinitySeconds: 10}.Encode())
	for name, tt := range map[string]struct {
		service Service
		export  bool
		peers   map[string]Peer
		want    map[string]string
		ready   string
	}{
		"nothing":             {Service{}, false, map[string]Peer{"b": {}}, map[string]string{}, ""},
		"global":              {Service{Global: Global{Global: true, Shared: true}}, false, map[string]Peer{"b": {}}, map[string]string{"service/shop/web": shared, "slice/shop/web-1": string(told.Encode())}, ""},
		"global, not shared":  {Service{Global: Global{Global: true}}, false, map[string]Peer{"b": {}}, map[string]string{}, ""},
		"exported":            {Service{}, true, map[string]Peer{"b": {}}, map[string]string{"export/shop/web": string(export.Encode()), "slice/shop/web-1": string(told.Encode())}, "the other clusters can see it"},
		"ExternalName":        {Service{ExternalName: true, Global: Global{Global: true, Shared: true}}, false, map[string]Peer{"b": {}}, map[string]string{}, ""},
		"global, but hidden":  {Service{Global: Global{Global: true, Shared: true}}, false, map[string]Peer{"b": {Export: "a"}}, map[string]string{}, ""},
		"no peers":            {Service{}, true, nil, map[string]string{}, "the other clusters can see it"},
		"nobody may see it":   {Service{}, true, map[string]Peer{"b": {Export: "a c"}}, map[string]string{}, "spec.export.namespaces of their Peers keeps it from clusters b; the others can see it"},
		"one of two may":      {Service{}, true, map[string]Peer{"b": {Export: "a"}, "c": {Export: "a shop"}}, map[string]string{"export/shop/web": string(export.Encode()), "slice/shop/web-1": string(told.Encode())}, "spec.export.namespaces of their Peers keeps it from clusters b; the others can see it"},
		"more ports than fit": {Service{Spec: string(many.Encode())}, true, map[string]Peer{"b": {}}, map[string]string{}, "more than 100 ports"},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPlanner(Base{Cluster: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, now)
			if tt.service.Spec == "" {
				tt.service.Spec = string(spec.Encode())
			}
			p.SetSlices(map[model.SliceKey]string{{Cluster: "a", Namespace: "shop", Name: "web-1"}: string(slice.Encode())}, nil)
			p.SetServices(map[model.ServiceKey]Service{web: tt.service}, nil)
			if tt.export {
				p.SetExports(map[model.ServiceKey]Export{web: {CreatedMilli: 5}}, nil)
			}
			p.SetPeers(tt.peers)
			plan := p.Plan()
			if d := cmp.Diff(tt.want, plan.Wire); d != "" {
				t.Error(d)
			}
			if got := plan.Exports[web].Ready.Message; strings.TrimPrefix(got, "field 8: ") != tt.ready {
				t.Errorf("Ready says %q, want %q", got, tt.ready)
			}
			told := slices.ContainsFunc(p.Lines(), nameIs("service shop/web", "endpoint 192.0.2.1 is not exported"))
			if _, published := plan.Wire["slice/shop/web-1"]; told != published {
				t.Errorf("lines %v", p.Lines())
			}
		})
	}
	_, err := claimOf(web, spec, Export{CreatedMilli: 5, Meta: string(wire.Export{Annotations: map[string]string{"a": strings.Repeat("x", maxExportBytes)}}.Encode())})
	if err == nil || !strings.Contains(err.Error(), "is over 32768; export fewer annotations") {
		t.Errorf("a large export: %v", err)
	}
	if d := cmp.Diff(map[string]string{"grant/b": string(wire.Grant{Namespaces: []string{"x", "y"}}.Encode())}, Grants(map[string]Peer{"a": {}, "b": {Export: "x y"}})); d != "" {
		t.Error(d)
	}
}

// TestSliceMoves: a slice whose label names another Service now is that one's.
func TestSliceMoves(t *testing.T) {
	app := model.ServiceKey{Namespace: "shop", Name: "app"}
	p := NewPlanner(Base{Cluster: "east"}, now)
	p.SetPeers(map[string]Peer{"west": {}})
	p.SetNamespaces([]string{"shop"}, nil)
	spec := hello()
	for _, k := range []model.ServiceKey{web, app} {
		p.SetServices(map[model.ServiceKey]Service{k: {Spec: string(spec.Encode())}}, nil)
		p.SetExports(map[model.ServiceKey]Export{k: {CreatedMilli: 5}}, nil)
	}
	slice := wire.Slice{Ports: spec.Ports, Endpoints: []wire.SliceEndpoint{{Addr: netip.MustParseAddr("10.1.0.1"), Ready: true}}}
	key := model.SliceKey{Cluster: "east", Namespace: "shop", Name: "x"}
	for _, of := range []model.ServiceKey{web, app, web} {
		slice.Service = of.Name
		p.SetSlices(map[model.SliceKey]string{key: string(slice.Encode())}, nil)
		plan := p.Plan()
		var imports []string
		for _, row := range plan.Slices {
			imports = append(imports, row.Import)
		}
		if told := plan.Wire["slice/shop/x"]; !slices.Equal(imports, []string{of.Name}) || told != string(slice.Encode()) {
			t.Errorf("%s: derived for %v, told %q", of, imports, told)
		}
		for _, k := range []model.ServiceKey{web, app} {
			if plan.Imports[k].Slices != (k == of) {
				t.Errorf("%s: import %s has slices: %v", of, k, plan.Imports[k].Slices)
			}
		}
	}
	slice.Service = "" // of no Service
	p.SetSlices(map[model.SliceKey]string{key: string(slice.Encode())}, nil)
	if plan := p.Plan(); len(plan.Slices) != 0 || plan.Wire["slice/shop/x"] != "" {
		t.Errorf("%v", plan.Slices)
	}
}

// TestExplain: who takes part, who does not and why, and with what.
func TestExplain(t *testing.T) {
	w := newWorld(t, "east", "north", "west")
	w.all("east", 20, hello(), "10.1.0.1", "10.1.0.2")
	w.all("west", 30, hello(ports(tcp("tcp", 43))), "10.2.0.1")
	w.service("north", hello())
	w.pods("north", hello(), "10.3.0.1") // not exported
	w.clusters["north"].planner.SetClaims(map[model.ExportKey]string{{Cluster: "bad", Namespace: "shop", Name: "web"}: "x",
		{Cluster: "bad", Namespace: "other", Name: "web"}: string(wire.Export{CreatedMilli: 7, Type: Headless, IPFamilies: []string{IPv4}}.Encode())}, nil)
	w.clusters["north"].planner.SetPeers(map[string]Peer{"east": {}, "west": {Freshness: Expired}})
	w.settle()
	p := w.clusters["north"].planner
	shop := Explanation{web, true, []Source{
		{Cluster: "bad", Refused: "unknown encoding version 120"},
		{Cluster: "east", CreatedMilli: now - 20_000, Rank: 2, Backends: 2, Ready: 2, Slices: 1},
		{Cluster: "west", CreatedMilli: now - 30_000, Rank: 1, Freshness: Expired, Backends: 1, Ready: 1},
	}}
	other := Explanation{model.ServiceKey{Namespace: "other", Name: "web"}, false, []Source{{Cluster: "bad", CreatedMilli: 7, Rank: 1}}}
	if d := cmp.Diff([]Explanation{other, shop}, p.Explain(model.ServiceKey{})); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Explanation{shop}, p.Explain(web)); d != "" {
		t.Error(d)
	}
	if got := p.Explain(model.ServiceKey{Namespace: "shop", Name: "nobody"}); got != nil {
		t.Error(got)
	}
}

// TestDerivedPorts: a derived slice has the pods' numbers under the import's names,
// each name once, and what the import says of the protocol above.
func TestDerivedPorts(t *testing.T) {
	p := NewPlanner(Base{Cluster: "west"}, now)
	p.SetNamespaces([]string{"shop"}, nil)
	spec := hello(ports(wire.Port{Name: "http", AppProtocol: "http", Protocol: 6, Port: 80}, tcp("x", 81)))
	spec.CreatedMilli = 1
	p.SetClaims(map[model.ExportKey]string{{Cluster: "east", Namespace: "shop", Name: "web"}: string(spec.Encode())}, nil)
	s := wire.Slice{Service: "web", Ports: []wire.Port{tcp("http", 8080), tcp("http", 9090), tcp("other", 1), {Name: "x", Protocol: 17, Port: 81}, tcp("x", 0)},
		Endpoints: []wire.SliceEndpoint{{Addr: netip.MustParseAddr("10.1.0.1")}}}
	p.SetSlices(map[model.SliceKey]string{{Cluster: "east", Namespace: "shop", Name: "x"}: string(s.Encode())}, nil)
	for _, row := range p.Plan().Slices {
		got, _ := wire.DecodeSlice([]byte(row.Slice))
		if d := cmp.Diff([]wire.Port{{Name: "http", AppProtocol: "http", Protocol: 6, Port: 8080}}, got.Ports); d != "" {
			t.Error(d)
		}
	}
	if n := len(p.Plan().Slices); n != 1 {
		t.Errorf("%d slices", n)
	}
	if err := checkPorts(make([]wire.Port, maxPorts+1)); err == nil || err.Error() != "more than 100 ports" {
		t.Errorf("101 ports: %v", err)
	}
}

package mcs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// randomExport is likely to conflict with another one, and may be refused.
func randomExport(r *rand.Rand) wire.Export {
	e := wire.Export{
		CreatedMilli:    uint64(now + 1000*pick(r, -50, -50, -40, -30, 0, 100, 7200)),
		Type:            pick(r, ClusterSetIP, ClusterSetIP, Headless, "Nonsense"),
		SessionAffinity: pick(r, "", "None", "ClientIP"), AffinitySeconds: pick[uint32](r, 0, 10, 20),
		InternalPolicy: pick(r, "", "Cluster", "Local"), TrafficDistribution: pick(r, "", "PreferClose"),
		IPFamilies: pick(r, []string{IPv4}, []string{IPv6}, []string{IPv4, IPv6}, []string{IPv6, IPv4}),
		Labels:     pick(r, nil, map[string]string{"a": "b"}, map[string]string{"a": "c", "d": "e"}),
	}
	for _, name := range []string{"", "http", "dns", "x"} {
		if r.IntN(2) == 0 {
			p := wire.Port{Name: name, Protocol: pick[uint8](r, 6, 17), Port: pick[uint16](r, 80, 81, 82), AppProtocol: pick(r, "", "http")}
			if !slices.ContainsFunc(e.Ports, func(q wire.Port) bool { return number(q) == number(p) }) {
				e.Ports = append(e.Ports, p)
			}
		}
	}
	return e
}

func randomSlice(r *rand.Rand, i int) string {
	s := wire.Slice{Service: "web"}
	for _, name := range []string{"", "http", "dns", "x"} {
		s.Ports = append(s.Ports, wire.Port{Name: name, Protocol: pick[uint8](r, 6, 17), Port: pick[uint16](r, 8080, 8081, 0), AppProtocol: pick(r, "", "a b")})
	}
	for n := range r.IntN(3) {
		s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, byte(i), 0, byte(n + 1)}), Ready: r.IntN(2) == 0, Node: "n1", Hostname: pick(r, "", "web-0", "No Name")})
	}
	return string(s.Encode())
}

// facts are what is true in a set of clusters.
type facts struct {
	exports map[string]wire.Export
	slices  map[model.SliceKey]string
	peers   map[string]Peer
}

func randomFacts(r *rand.Rand) facts {
	f := facts{map[string]wire.Export{}, map[model.SliceKey]string{}, map[string]Peer{}}
	for i := range 5 {
		name := fmt.Sprintf("c%d", i)
		f.peers[name] = Peer{Freshness: pick(r, Fresh, Fresh, Stale, Expired), Export: pick(r, "", "shop", "other")}
		if r.IntN(4) > 0 {
			f.exports[name] = randomExport(r)
		}
		for n := range r.IntN(3) {
			f.slices[model.SliceKey{Cluster: name, Namespace: "shop", Name: fmt.Sprintf("web-%d", n)}] = randomSlice(r, i)
		}
	}
	return f
}

// tell has a planner of a cluster learn facts, in any order, with plans in between.
func (f facts) tell(r *rand.Rand, p *Planner, own string, planned func(*Plan)) {
	var steps []func()
	for name, e := range f.exports {
		if name != own {
			steps = append(steps, func() {
				p.SetClaims(map[model.ExportKey]string{{Cluster: name, Namespace: "shop", Name: "web"}: string(e.Encode())}, nil)
			})
			continue
		}
		meta, spec := wire.Export{Labels: e.Labels}, e
		spec.CreatedMilli, spec.Labels = 0, nil
		steps = append(steps, func() { p.SetServices(map[model.ServiceKey]Service{web: {Spec: string(spec.Encode())}}, nil) },
			func() {
				p.SetExports(map[model.ServiceKey]Export{web: {CreatedMilli: e.CreatedMilli, Meta: string(meta.Encode())}}, nil)
			})
	}
	for k, v := range f.slices {
		steps = append(steps, func() { p.SetSlices(map[model.SliceKey]string{k: v}, nil) })
	}
	steps = append(steps, func() { p.SetNamespaces([]string{"shop"}, nil) }, func() { p.SetPeers(f.peers) })
	r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for _, do := range steps {
		do()
		if r.IntN(2) == 0 {
			planned(p.Plan())
		}
	}
}

func ignore(*Plan) {}

// forget has a planner unlearn what is not in f.
func (f facts) forget(p *Planner, old facts, own string) {
	for name := range old.exports {
		if _, still := f.exports[name]; still {
			continue
		}
		p.SetClaims(nil, []model.ExportKey{{Cluster: name, Namespace: "shop", Name: "web"}})
		if name == own {
			p.SetServices(nil, []model.ServiceKey{web})
			p.SetExports(nil, []model.ServiceKey{web})
		}
	}
	for k := range old.slices {
		if _, still := f.slices[k]; !still {
			p.SetSlices(nil, []model.SliceKey{k})
		}
	}
}

// TestAlike (invariant G1): whoever looks, and in whichever order it learnt of the
// exports, the import comes out the same, and so does the conflict of all exports.
func TestAlike(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := randomFacts(r)
		var want Import
		var conflict Condition
		for i, own := range []string{"c0", "c1", "c2", "c3", "c4", "observer"} {
			p := NewPlanner(Base{Cluster: own}, now)
			f.tell(r, p, own, ignore)
			plan := p.Plan()
			writable(t, plan, own)
			got := plan.Imports[web]
			got.Ready, got.IPs, got.Slices = Condition{}, "", false // addresses are each cluster's own
			if i == 0 {
				want = got
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("seed %d: c0 and %s differ: %s", seed, own, d)
			}
			mine := plan.Exports[web].Conflict
			if conflict == (Condition{}) {
				conflict = mine
			}
			if mine != (Condition{}) && mine != conflict {
				t.Fatalf("seed %d: %s says %+v, others %+v", seed, own, mine, conflict)
			}
		}
	}
}

// reasonForm is what Kubernetes takes for a condition's reason.
var reasonForm = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`)

// writable checks that Kubernetes takes what a plan wants. Our own slices are out
// of Kubernetes, and so are their host names.
func writable(t *testing.T, p *Plan, own string) {
	t.Helper()
	for k, d := range p.Services {
		spec, err := wire.DecodeExport([]byte(d.Spec))
		if err != nil || len(spec.IPFamilies) == 0 || len(spec.Ports) == 0 {
			t.Fatalf("derived Service %s: %+v, %v", k, spec, err)
		}
		for _, port := range spec.Ports {
			if len(spec.Ports) > 1 && port.Name == "" {
				t.Fatalf("derived Service %s has several ports, and one without a name", k)
			}
		}
		if err := checkPorts(spec.Ports); err != nil {
			t.Fatalf("derived Service %s: %v", k, err)
		}
	}
	for k, i := range p.Imports {
		spec, err := i.Decode()
		if err = errors.Join(err, checkPorts(spec.Ports)); err != nil || len(spec.IPFamilies) == 0 || i.Clusters == "" {
			t.Fatalf("import %s: %+v, %v", k, spec, err)
		}
	}
	for k, d := range p.Slices {
		s, err := wire.DecodeSlice([]byte(d.Slice))
		if err != nil || len(s.Endpoints) == 0 || d.Labels()[LabelSourceCluster] == "" {
			t.Fatalf("slice %s: %+v, %v", k, d, err)
		}
		seen := map[string]bool{}
		for _, port := range s.Ports {
			if seen[port.Name] || port.Port == 0 || port.AppProtocol != "" && len(validation.IsQualifiedName(port.AppProtocol)) > 0 {
				t.Fatalf("slice %s has ports %+v", k, s.Ports)
			}
			seen[port.Name] = true
		}
		for _, e := range s.Endpoints {
			if d.Source != own && (e.Node != "" || e.Hostname != "" && len(validation.IsDNS1123Label(e.Hostname)) > 0) {
				t.Fatalf("slice %s has endpoint %+v", k, e)
			}
		}
	}
	for k, s := range p.Exports {
		for _, c := range []Condition{s.Valid, s.Ready, s.Conflict} {
			if c != (Condition{}) && (!reasonForm.MatchString(c.Reason) || len(c.Reason) > 1024 || len(c.Message) > 32768 || c.Message == "") {
				t.Fatalf("export %s: %+v", k, c)
			}
		}
	}
}

// FuzzClaims: whatever peers say, Kubernetes takes what comes of it.
func FuzzClaims(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 3))
	for range 8 {
		f.Add(randomExport(r).Encode(), randomExport(r).Encode(), []byte(randomSlice(r, 1)))
	}
	f.Fuzz(func(t *testing.T, a, b, slice []byte) {
		p := NewPlanner(Base{Cluster: "us"}, now)
		p.SetNamespaces([]string{"shop"}, nil)
		p.SetPeers(map[string]Peer{"a": {}, "b": {}})
		p.SetClaims(map[model.ExportKey]string{{Cluster: "a", Namespace: "shop", Name: "web"}: string(a), {Cluster: "b", Namespace: "shop", Name: "web"}: string(b)}, nil)
		p.SetSlices(map[model.SliceKey]string{{Cluster: "a", Namespace: "shop", Name: "x"}: string(slice), {Cluster: "b", Namespace: "shop", Name: "x"}: string(slice)}, nil)
		spec := hello()
		p.SetServices(map[model.ServiceKey]Service{web: {Spec: string(spec.Encode())}}, nil)
		p.SetExports(map[model.ServiceKey]Export{web: {CreatedMilli: now}}, nil)
		writable(t, p.Plan(), "us")
		p.SetClaims(nil, []model.ExportKey{{Cluster: "a", Namespace: "shop", Name: "web"}})
		writable(t, p.Plan(), "us")
	})
}

// held is what somebody holds who has only ever seen patches.
type held struct{ Plan }

func newHeld() *held {
	return &held{Plan{map[model.ServiceKey]Import{}, map[model.ServiceKey]ExportStatus{}, map[model.ServiceKey]DerivedService{},
		map[model.ServiceKey]DerivedSlice{}, map[string]string{}, Patch{}}}
}

func (h *held) take(p *Plan) {
	patch(h.Imports, p.Patch.Imports)
	patch(h.Exports, p.Patch.Exports)
	patch(h.Services, p.Patch.Services)
	patch(h.Slices, p.Patch.Slices)
	patch(h.Wire, p.Patch.Wire)
}

func patch[K, V comparable](rows map[K]V, c Changes[K, V]) {
	for k, v := range c.Set {
		rows[k] = v
	}
	for _, k := range c.Del {
		delete(rows, k)
	}
}

// TestIncremental (invariant G2): a plan after any changes is that of a new
// planner, and patches add up to it.
func TestIncremental(t *testing.T) {
	const own = "c1"
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		p, h, old := NewPlanner(Base{Cluster: own}, now), newHeld(), facts{}
		for range 4 {
			f := randomFacts(r)
			f.forget(p, old, own)
			f.tell(r, p, own, h.take)
			got := p.Plan()
			h.take(got)
			old = f
			fresh := NewPlanner(Base{Cluster: own}, now)
			f.tell(r, fresh, own, ignore)
			want := fresh.Plan()
			got.Patch, want.Patch = Patch{}, Patch{}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("seed %d: %s", seed, d)
			}
			if d := cmp.Diff(*want, h.Plan); d != "" {
				t.Fatalf("seed %d: patches add up to something else: %s", seed, d)
			}
			if d := cmp.Diff(fresh.Lines(), p.Lines()); d != "" {
				t.Fatalf("seed %d: %s", seed, d)
			}
		}
	}
}

package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

const source = "kubernetes"

// indexed is a zone and the tables that it is made of.
type indexed struct {
	Tables
	*Index
	zone *zone.Zone
}

func newIndexed(t testing.TB) *indexed {
	t.Helper()
	z, err := zone.New(zone.Config{Name: "clusterset.local", TTLSeconds: 5, UDPSize: 1232})
	if err != nil {
		t.Fatal(err)
	}
	x := &indexed{zone: z, Tables: Tables{Imports: state.New[model.ServiceKey, model.ServiceImport](), Slices: state.New[model.ServiceKey, model.ImportSlice](),
		Namespaces: state.New[string, model.Namespace](), Server: state.New[string, model.Addrs]()}}
	x.Imports.Expect(source)
	x.Slices.Expect(source)
	x.Namespaces.Expect(source)
	x.Index = NewIndex(x.Tables, z, NewMeter(prometheus.NewRegistry(), ":53", z.Name()), []netip.Addr{netip.MustParseAddr("10.0.0.53")})
	return x
}

// start runs the index until the test ends; to be used in a bubble.
func (x *indexed) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = x.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// ask is the answer's code and addresses, once the index has nothing to do.
func (x *indexed) ask(t *testing.T, name string) string {
	t.Helper()
	synctest.Wait()
	b, err := new(dns.Msg).SetQuestion(name+".clusterset.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q zone.Query
	if err := q.Parse(b); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(x.zone.Answer(nil, &q, 512, 1)); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, rr := range m.Answer {
		list = append(list, rr.(*dns.A).A.String())
	}
	slices.Sort(list)
	return fmt.Sprint(dns.RcodeToString[m.Rcode], list)
}

func objectKey(name string) model.ServiceKey { return model.ServiceKey{Namespace: "shop", Name: name} }

// Nothing is said of names before all three tables have been read, in whatever
// order that happens (invariant D1).
func TestSync(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
		synctest.Test(t, func(t *testing.T) {
			x := newIndexed(t)
			x.start(t)
			fill := []func(){
				func() {
					x.Imports.Replace(source, map[model.ServiceKey]model.ServiceImport{objectKey("db"): {Headless: true}})
				},
				func() {
					x.Slices.Replace(source, map[model.ServiceKey]model.ImportSlice{objectKey("db-1"): {Service: "db", Cluster: "east", Endpoints: "10.0.0.1"}})
				},
				func() { x.Namespaces.Replace(source, map[string]model.Namespace{"shop": {}}) },
			}
			for i, at := range order {
				if got := x.ask(t, "db.shop.svc"); got != "SERVFAIL[]" || len(x.Lagging()) != 3-i {
					t.Errorf("order %v, step %d: %s, lagging %v", order, i, got, x.Lagging())
				}
				fill[at]()
			}
			if got := x.ask(t, "db.shop.svc"); got != "NOERROR[10.0.0.1]" || len(x.Lagging()) != 0 {
				t.Errorf("order %v: %s", order, got)
			}
			<-x.Synced()
		})
	}
}

// The zone follows from what the tables say, not from the order in which they
// came to say it.
func TestOrderOfChanges(t *testing.T) {
	steps := func(x *indexed) []func() {
		slice := func(name string, row model.ImportSlice) func() {
			return func() { x.Slices.Update(source, map[model.ServiceKey]model.ImportSlice{objectKey(name): row}, nil) }
		}
		return []func(){
			func() {
				x.Imports.Update(source, map[model.ServiceKey]model.ServiceImport{objectKey("db"): {Headless: true}, objectKey("web"): {Headless: true}}, nil)
			},
			slice("s1", model.ImportSlice{Service: "db", Cluster: "east", Endpoints: "10.0.0.1"}),
			slice("s2", model.ImportSlice{Service: "db", Cluster: "west", Endpoints: "10.0.1.1 10.0.1.2"}),
			slice("s3", model.ImportSlice{Service: "web", Cluster: "west", Endpoints: "10.0.2.1"}),
			slice("s4", model.ImportSlice{Service: "nobody", Cluster: "west", Endpoints: "10.0.3.1"}),
			func() { x.Namespaces.Update(source, map[string]model.Namespace{"shop": {}}, nil) },
		}
	}
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			x := newIndexed(t)
			x.Imports.Replace(source, nil)
			x.Slices.Replace(source, nil)
			x.Namespaces.Replace(source, nil)
			x.start(t)
			list := steps(x)
			list = append(list, list...) // doubled, and shuffled
			rnd := rand.New(rand.NewPCG(seed, 0))
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			for _, do := range list {
				do()
				if rnd.IntN(2) == 0 {
					synctest.Wait()
				}
			}
			for name, want := range map[string]string{"db.shop.svc": "NOERROR[10.0.0.1 10.0.1.1 10.0.1.2]", "web.shop.svc": "NOERROR[10.0.2.1]", "nobody.shop.svc": "NXDOMAIN[]"} {
				if got := x.ask(t, name); got != want {
					t.Errorf("seed %d: %s: %s, want %s", seed, name, got, want)
				}
			}
		})
	}
}

// Slices that move to another import, lose their endpoints or go, and imports
// that go, take their names with them.
func TestRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t)
		x.Imports.Replace(source, map[model.ServiceKey]model.ServiceImport{objectKey("db"): {Headless: true}, objectKey("web"): {Headless: true}})
		x.Namespaces.Replace(source, map[string]model.Namespace{"shop": {}})
		x.Slices.Replace(source, map[model.ServiceKey]model.ImportSlice{objectKey("s"): {Service: "db", Cluster: "east", Endpoints: "10.0.0.1"}})
		x.start(t)
		update := func(row model.ImportSlice) {
			x.Slices.Update(source, map[model.ServiceKey]model.ImportSlice{objectKey("s"): row}, nil)
		}
		for _, step := range []struct {
			name    string
			do      func()
			db, web string
		}{
			{"at first", func() {}, "NOERROR[10.0.0.1]", "NXDOMAIN[]"},
			{"moved", func() { update(model.ImportSlice{Service: "web", Cluster: "east", Endpoints: "10.0.0.1"}) }, "NXDOMAIN[]", "NOERROR[10.0.0.1]"},
			{"not ready", func() { update(model.ImportSlice{Service: "web", Cluster: "east"}) }, "NXDOMAIN[]", "NXDOMAIN[]"},
			{"back", func() { update(model.ImportSlice{Service: "db", Cluster: "east", Endpoints: "10.0.0.2"}) }, "NOERROR[10.0.0.2]", "NXDOMAIN[]"},
			{"import gone", func() { x.Imports.Update(source, nil, []model.ServiceKey{objectKey("db")}) }, "NXDOMAIN[]", "NXDOMAIN[]"},
			{"import back", func() {
				x.Imports.Update(source, map[model.ServiceKey]model.ServiceImport{objectKey("db"): {Headless: true}}, nil)
			}, "NOERROR[10.0.0.2]", "NXDOMAIN[]"},
			{"slice gone", func() { x.Slices.Update(source, nil, []model.ServiceKey{objectKey("s")}) }, "NXDOMAIN[]", "NXDOMAIN[]"},
		} {
			step.do()
			if db, web := x.ask(t, "db.shop.svc"), x.ask(t, "web.shop.svc"); db != step.db || web != step.web {
				t.Errorf("%s: db %s, want %s; web %s, want %s", step.name, db, step.db, web, step.web)
			}
		}
		if len(x.of)+len(x.slices) != 0 {
			t.Errorf("the index keeps %v %v", x.of, x.slices)
		}
	})
}

// The name server has the Service's addresses, or ours.
func TestNameServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndexed(t)
		x.start(t)
		if got := x.ask(t, "ns.dns"); got != "NOERROR[10.0.0.53]" {
			t.Error(got)
		}
		x.Server.Update(source, map[string]model.Addrs{"clustermesh-dns": {V4: netip.MustParseAddr("10.96.0.53")}}, nil)
		if got := x.ask(t, "ns.dns"); got != "NOERROR[10.96.0.53]" {
			t.Error(got)
		}
		x.Server.Update(source, map[string]model.Addrs{"clustermesh-dns": {}}, nil) // headless
		if got := x.ask(t, "ns.dns"); got != "NOERROR[10.0.0.53]" {
			t.Error(got)
		}
	})
}

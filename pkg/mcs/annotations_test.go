package mcs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func nameIs(object, message string) func(status.Line) bool {
	return func(l status.Line) bool { return l.Object == object && strings.Contains(l.Message, message) }
}

func TestParseAnnotations(t *testing.T) {
	const allowed = `write names of clusters, "local" or "*" for all others, separated by commas, each with a weight of 0 to 1000 if need be, for example "local, east=80, west=20"`
	for name, tt := range map[string]struct {
		in   string // pairs, separated by ;
		want Global
		err  string
	}{
		"none":                         {"", Global{}, ""},
		"global":                       {"clustermesh.io/global:true", Global{true, true, ""}, ""},
		"not shared":                   {"clustermesh.io/global:true;clustermesh.io/shared:false", Global{true, false, ""}, ""},
		"shared alone says nothing":    {"clustermesh.io/shared:true", Global{}, ""},
		"cilium":                       {"service.cilium.io/global:True;service.cilium.io/shared:false;service.cilium.io/affinity:remote", Global{true, false, "*, local"}, ""},
		"ours wins over cilium's":      {"clustermesh.io/global:false;service.cilium.io/global:true", Global{}, ""},
		"local":                        {"clustermesh.io/global:true;clustermesh.io/affinity:local", Global{true, true, "local, *"}, ""},
		"no affinity":                  {"clustermesh.io/global:true;clustermesh.io/affinity:none", Global{true, true, ""}, ""},
		"clusters":                     {"clustermesh.io/global:true;clustermesh.io/clusters: local,east = 80,west=20 ", Global{true, true, "local, east=80, west=20"}, ""},
		"clusters is not cilium's":     {"clustermesh.io/global:true;service.cilium.io/clusters:east", Global{true, true, ""}, ""},
		"global: bad":                  {"clustermesh.io/global:yes", Global{}, `annotation clustermesh.io/global: value "yes" is not allowed; write "true" or "false"`},
		"cilium's global: bad":         {"service.cilium.io/global:1", Global{}, `annotation service.cilium.io/global: value "1" is not allowed; write "true" or "false"`},
		"shared and affinity: bad":     {"clustermesh.io/global:true;clustermesh.io/shared:no;clustermesh.io/affinity:near", Global{true, true, ""}, "annotation clustermesh.io/shared: value \"no\" is not allowed; write \"true\" or \"false\"\nannotation clustermesh.io/affinity: value \"near\" is not allowed; write \"none\", \"local\" or \"remote\""},
		"clusters and affinity":        {"clustermesh.io/global:true;clustermesh.io/affinity:local;clustermesh.io/clusters:east", Global{true, true, "east"}, `annotation clustermesh.io/affinity: value "local" has no effect beside clustermesh.io/clusters; remove one of the two`},
		"clusters: empty":              {"clustermesh.io/global:true;clustermesh.io/clusters:", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "" is not allowed; ` + allowed + ` ("" is not the name of a cluster)`},
		"clusters: no name":            {"clustermesh.io/global:true;clustermesh.io/clusters:a,B", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "a,B" is not allowed; ` + allowed + ` ("B" is not the name of a cluster)`},
		"clusters: weight":             {"clustermesh.io/global:true;clustermesh.io/clusters:a=1001", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "a=1001" is not allowed; ` + allowed + ` ("1001" is not a weight)`},
		"clusters: twice":              {"clustermesh.io/global:true;clustermesh.io/clusters:a,a=2", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "a,a=2" is not allowed; ` + allowed + ` (it names a twice)`},
		"clusters: escape sequence":    {"clustermesh.io/global:true;clustermesh.io/clusters:\x1b[2J", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "·[2J" is not allowed; ` + allowed + ` ("·[2J" is not the name of a cluster)`},
		"clusters: a trailing comma":   {"clustermesh.io/global:true;clustermesh.io/clusters:a,", Global{true, true, ""}, `annotation clustermesh.io/clusters: value "a," is not allowed; ` + allowed + ` ("" is not the name of a cluster)`},
		"clusters: everybody by names": {"clustermesh.io/global:true;clustermesh.io/clusters:*=1,local=3", Global{true, true, "*=1, local=3"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := map[string]string{}
			for pair := range strings.SplitSeq(tt.in, ";") {
				k, v, _ := strings.Cut(pair, ":")
				in[k] = v
			}
			got, err := ParseAnnotations(in)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if d := cmp.Diff(tt.want, got); d != "" || text != tt.err {
				t.Errorf("%s\nerror %s\nwant  %s", d, text, tt.err)
			}
		})
	}
}

// TestUnknownCluster: a list that names a cluster that is no peer says so.
func TestUnknownCluster(t *testing.T) {
	p := NewPlanner(Base{Cluster: "a"}, now)
	spec := hello()
	p.SetServices(map[model.ServiceKey]Service{web: {Spec: string(spec.Encode()), Global: Global{true, true, "a, b, c"}, Problem: "something else"}}, nil)
	p.SetPeers(map[string]Peer{"b": {}})
	p.Plan()
	if lines := p.Lines(); len(lines) != 1 || lines[0].Message != "something else; annotation clustermesh.io/clusters: there is no Peer c" || !strings.Contains(lines[0].Remedy, "connect cluster c") {
		t.Errorf("%+v", lines)
	}
	p.SetPeers(map[string]Peer{"b": {}, "c": {}})
	p.Plan()
	if lines := p.Lines(); len(lines) != 1 || lines[0].Message != "something else" {
		t.Errorf("%+v", lines)
	}
}

// TestChoose (invariant G4): candidates are written CLUSTER:STATE, with r ready, s serving and
// terminating, n neither, t terminating; answers are weights.
func TestChoose(t *testing.T) {
	for name, tt := range map[string]struct {
		policy, list string
		want         []uint32
		whys         []Why // of those with weight 0, in order
	}{
		"all alike":                           {"", "me:r east:r west:r east:n", []uint32{1, 1, 1, 0}, []Why{NotReady}},
		"none ready: who terminates":          {"", "me:n east:s west:t", []uint32{0, 1, 0}, []Why{NotReady, Terminating}},
		"nobody":                              {"", "me:n", []uint32{0}, []Why{NotReady}},
		"local first":                         {"local, *", "me:r east:r", []uint32{1, 0}, []Why{LaterGroup}},
		"local by its name":                   {"me, *", "me:r east:r", []uint32{1, 0}, []Why{LaterGroup}},
		"local has none ready":                {"local, *", "me:n me:s east:r west:r", []uint32{0, 0, 1, 1}, []Why{NotReady, Terminating}},
		"local has half":                      {"local, *", "me:r me:n east:r", []uint32{1, 0, 0}, []Why{NotReady, LaterGroup}},
		"local has too few":                   {"local, *", "me:r me:n me:n east:r", []uint32{1, 0, 0, 1}, []Why{NotReady, NotReady}},
		"who terminates is not missed":        {"local, *", "me:r me:t me:s east:r", []uint32{1, 0, 0, 0}, []Why{Terminating, Terminating, LaterGroup}},
		"remote first":                        {"*, local", "me:r east:r west:r", []uint32{0, 1, 1}, []Why{LaterGroup}},
		"groups in order":                     {"east, west, local", "me:r east:n west:r", []uint32{0, 0, 1}, []Why{LaterGroup, NotReady}},
		"not listed":                          {"east", "me:r east:r", []uint32{0, 1}, []Why{NotListed}},
		"not listed, though nobody else":      {"east", "me:r east:n", []uint32{0, 0}, []Why{NotListed, NotReady}},
		"weights":                             {"east=80, west=20", "east:r west:r", []uint32{4, 1}, nil},
		"weights are of clusters":             {"east=80, west=20", "east:r east:r east:r east:r west:r", []uint32{1, 1, 1, 1, 1}, nil},
		"weights with thirds":                 {"east=1, west=1", "east:r east:r east:r west:r west:r", []uint32{2, 2, 2, 3, 3}, nil},
		"a weighted group takes up the slack": {"east=80, west=20", "east:n west:r", []uint32{0, 1}, []Why{NotReady}},
		"weight 0":                            {"east=0, west=20", "east:r west:r", []uint32{0, 1}, []Why{ZeroWeight}},
		"fallback to a weighted group":        {"local, east=80, west=20", "me:n east:r west:r", []uint32{0, 4, 1}, []Why{NotReady}},
		"part local, part weighted":           {"local, east=3, west=1", "me:r me:n me:n east:r west:r", []uint32{2, 0, 0, 3, 1}, []Why{NotReady, NotReady}},
		"others with a weight":                {"local=1, *=1", "me:r east:r west:r", []uint32{1, 1, 1}, nil},
		"stale is last choice":                {"", "me:r stale:r", []uint32{1, 0}, []Why{SilentCluster}},
		"stale, though it is in an earlier":   {"stale, local", "me:r stale:r", []uint32{1, 0}, []Why{SilentCluster}},
		"stale is better than nothing":        {"", "me:n stale:r stale:n", []uint32{0, 1, 0}, []Why{NotReady, NotReady}},
		"stale does not come for few":         {"local, *", "me:r me:n me:n stale:r", []uint32{1, 0, 0, 0}, []Why{NotReady, NotReady, SilentCluster}},
		"a fresh one that still serves":       {"", "me:s stale:r", []uint32{1, 0}, []Why{SilentCluster}},
		"expired is withdrawn":                {"", "me:n expired:r", []uint32{0, 0}, []Why{NotReady, WithdrawnCluster}},
		"our own is never stale":              {"", "stale:n me:r", []uint32{0, 1}, []Why{NotReady}},
		"stale groups keep their order":       {"west, stale", "west:n stale:r", []uint32{0, 1}, []Why{NotReady}},
	} {
		t.Run(name, func(t *testing.T) {
			var p Policy
			if tt.policy != "" {
				var err error
				if p, err = ParsePolicy(tt.policy); err != nil {
					t.Fatal(err)
				}
			}
			var list []Candidate
			for text := range strings.FieldsSeq(tt.list) {
				cluster, state, _ := strings.Cut(text, ":")
				list = append(list, Candidate{cluster, state == "r", state == "r" || state == "s", state == "s" || state == "t"})
			}
			fresh := func(c string) Freshness {
				return map[string]Freshness{"stale": Stale, "expired": Expired, "me": Expired}[c]
			}
			var got []uint32
			var whys []Why
			for i, u := range Choose(p, "me", fresh, list) {
				if got = append(got, u.Weight); u.Weight == 0 {
					whys = append(whys, u.Why)
				}
				if u.Weight > 0 != (u.Why <= LastStale) {
					t.Errorf("%v: weight %d, %v", list[i], u.Weight, u.Why)
				}
			}
			if !slices.Equal(got, tt.want) || !slices.Equal(whys, tt.whys) {
				t.Errorf("weights %v, want %v; whys %v, want %v", got, tt.want, whys, tt.whys)
			}
		})
	}
}

// TestWeightsOfMany: shares are right, and weights fit, whatever the numbers.
func TestWeightsOfMany(t *testing.T) {
	p, _ := ParsePolicy("a=997, b=1, c=499, d=7")
	sizes := map[string]int{"a": 1201, "b": 1999, "c": 907, "d": 13}
	var list []Candidate
	for c, n := range sizes {
		list = append(list, slices.Repeat([]Candidate{{Cluster: c, Ready: true}}, n)...)
	}
	got, total := map[string]float64{}, 0.0
	for i, u := range Choose(p, "me", func(string) Freshness { return Fresh }, list) {
		if u.Weight == 0 || u.Weight > largestWeight {
			t.Fatalf("weight %d", u.Weight)
		}
		got[list[i].Cluster] += float64(u.Weight)
		total += float64(u.Weight)
	}
	for c, w := range map[string]float64{"a": 997, "b": 1, "c": 499, "d": 7} {
		if off := got[c] / total / (w / 1504); off < 0.99 || off > 1.01 {
			t.Errorf("%s has %.5f of all, its weight is worth %.5f", c, got[c]/total, w/1504)
		}
	}
}

// TestMerge: which slices count for which Service, and who has to be told.
func TestMerge(t *testing.T) {
	m := NewMerge("me")
	east := model.ExportKey{Cluster: "east", Namespace: "shop", Name: "web"}
	slice := func(cluster string) model.SliceKey {
		return model.SliceKey{Cluster: cluster, Namespace: "shop", Name: "x"}
	}
	set := func(g Global) []model.ServiceKey { return m.SetServices(map[model.ServiceKey]Global{web: g}, nil) }
	for _, step := range []struct {
		name        string
		do          func() []model.ServiceKey
		dirty, east bool
	}{
		{"east shares what is not global here", func() []model.ServiceKey { return m.SetShared([]model.ExportKey{east}, nil) }, false, false},
		{"now it is", func() []model.ServiceKey { return set(Global{true, true, ""}) }, true, true},
		{"again", func() []model.ServiceKey { return set(Global{true, true, ""}) }, false, true},
		{"it need not be shared for that", func() []model.ServiceKey { return set(Global{true, false, ""}) }, false, true},
		{"another policy", func() []model.ServiceKey { return set(Global{true, true, "local, *"}) }, true, true},
		{"east shares no more", func() []model.ServiceKey { return m.SetShared(nil, []model.ExportKey{east}) }, true, false},
		{"and again", func() []model.ServiceKey { return m.SetShared([]model.ExportKey{east}, nil) }, true, true},
		{"not global any more", func() []model.ServiceKey { return set(Global{}) }, true, false},
	} {
		dirty := step.do()
		if slices.Equal(dirty, []model.ServiceKey{web}) != step.dirty || m.Takes(web, slice("east")) != step.east || !m.Takes(web, slice("me")) {
			t.Errorf("%s: dirty %v, takes east's %v", step.name, dirty, m.Takes(web, slice("east")))
		}
	}
	for _, step := range []struct {
		fresh map[string]Freshness
		want  string
	}{
		{map[string]Freshness{"east": Fresh}, "[]"}, {map[string]Freshness{"east": Stale, "west": Fresh}, "[east]"}, {map[string]Freshness{"east": Stale, "west": Expired}, "[west]"},
		{map[string]Freshness{"east": Stale, "west": Expired}, "[]"}, {map[string]Freshness{"west": Expired}, "[east]"}, {nil, "[west]"},
	} {
		if got := fmt.Sprint(m.SetFreshness(step.fresh)); got != step.want {
			t.Errorf("%v: changed %s, want %s", step.fresh, got, step.want)
		}
	}
	for _, s := range []struct{ cluster, source, want string }{{"me", "", "me"}, {"me", "east", "east"}, {"east", "", "east"}, {"east", "me", "east"}} {
		if got := m.ClusterOf(slice(s.cluster), wire.Slice{Source: s.source}); got != s.want {
			t.Errorf("a slice of %s that says %q is of %s, want %s", s.cluster, s.source, got, s.want)
		}
	}
	set(Global{true, true, "local, *"})
	m.SetFreshness(map[string]Freshness{"west": Expired})
	list := []Candidate{{Cluster: "me", Ready: true}, {Cluster: "me"}, {Cluster: "me"}, {Cluster: "east", Ready: true}, {Cluster: "west", Ready: true}}
	want := []ClusterUse{{"east", 1, 1, 1, 0.5, "ready"}, {"me", 3, 1, 1, 0.5, "ready"}, {"west", 1, 1, 0, 0, "its cluster has been silent for too long"}}
	if d := cmp.Diff(want, Summarize(list, m.Choose(web, list))); d != "" {
		t.Error(d)
	}
}

package lbpool

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func TestLocals(t *testing.T) {
	slice := func(service string, nodes ...string) string {
		s := wire.Slice{Service: service}
		for i, n := range nodes {
			s.Endpoints = append(s.Endpoints, wire.SliceEndpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Node: n, Ready: n != "down", Serving: true})
		}
		return string(s.Encode())
	}
	at := func(name string) model.SliceKey { return model.SliceKey{Cluster: "us", Namespace: "ns", Name: name} }
	web, other := Key{"ns", "web"}, Key{"ns", "other"}
	local := Service{Local: true, Ours: "192.0.2.1"}
	rows := map[model.SliceKey]string{at("1"): slice("web", "n1", "n2", "n1", "down"), at("2"): slice("web", "n3"), at("3"): slice("other", "n4")}
	all := func() map[model.SliceKey]string { return rows }
	nodes := func(list ...string) map[string]bool {
		out := map[string]bool{}
		for _, n := range list {
			out[n] = true
		}
		return out
	}
	l := NewLocals()
	check := func(what string, want map[Key]map[string]bool) {
		t.Helper()
		if d := cmp.Diff(want, l.Nodes()); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	if l.Change(rows, nil) {
		t.Error("slices of nobody matter")
	}
	l.SetServices(map[Key]Service{web: local, other: {Ours: "192.0.2.2"}}, all)
	check("a Service", map[Key]map[string]bool{web: nodes("n1", "n2", "n3")})
	if l.Change(map[model.SliceKey]string{at("3"): slice("other", "n5")}, nil) {
		t.Error("a slice of another Service matters")
	}
	if l.Change(map[model.SliceKey]string{at("1"): slice("web", "n1", "n2", "down", "n2")}, nil) {
		t.Error("the same nodes matter")
	}
	if !l.Change(map[model.SliceKey]string{at("1"): slice("web", "down")}, []model.SliceKey{at("2")}) {
		t.Error("nodes that go do not matter")
	}
	check("nobody", map[Key]map[string]bool{web: {}})
	l.SetServices(map[Key]Service{web: local, other: local}, all)
	check("another Service", map[Key]map[string]bool{web: nodes("n1", "n2", "n3"), other: nodes("n4")})
	if !l.Change(map[model.SliceKey]string{at("3"): slice("web", "n4")}, nil) {
		t.Error("a slice that changes sides does not matter")
	}
	check("changed sides", map[Key]map[string]bool{web: nodes("n1", "n2", "n3", "n4")})
	l.SetServices(nil, all)
	check("none", map[Key]map[string]bool{})
}

package mesh

import (
	"testing"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// FuzzAdmission feeds arbitrary rows. Whatever is admitted must hold to what the
// Peer allows (invariants W2, M3), and another peer must not notice.
func FuzzAdmission(f *testing.F) {
	for _, r := range []kvstore.Row{
		node("n1", "192.0.2.1 10.2.1.0/24"), node("n1", "192.0.2.1 0.0.0.0/0"), node("n1", "203.0.113.1"), rawNode("n1", 5, 10, 2, 1, 1, 24),
		identity("east", "default", 0), identity("west", "default", 42), endpoint("10.2.0.1"), endpoint("10.1.0.1"), header("east"),
		{Key: "service/default/web", Value: wire.Service{}.Encode()}, {Key: "export/default/web", Value: wire.Export{}.Encode()},
		{Key: "slice/default/web-1", Value: wire.Slice{Service: "web"}.Encode()}, {Key: "heartbeat", Value: wire.Heartbeat{Count: 7}.Encode()},
		{Key: "node/\xff", Value: []byte{1}}, {Key: "unknown/x", Value: []byte{1}},
	} {
		f.Add(r.Key, r.Value)
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		w := newWorld()
		third := node("w1", "203.0.113.1 10.3.1.0/24")
		if w.admit("west", third) != "" {
			t.Fatal("west")
		}
		a := w.peers["east"]
		for range 2 { // the second time it is a change
			out := a.Admit([]kvstore.Row{{Key: key, Value: value}})
			if len(out) == 1 {
				check(t, out[0])
			}
		}
		a.Begin(kindOf(key), true)
		a.Admit([]kvstore.Row{{Key: key, Value: value}})
		a.End(kindOf(key), true)
		for _, r := range a.Refused() {
			if r.Count != 1 || len(r.Example) > maxExample+4 || len(r.Message) > maxMessage+4 {
				t.Fatalf("refusal %+v", r)
			}
		}
		if w.again["west"] || w.admit("west", third) != "" || w.peers["west"].Refused() != nil {
			t.Fatal("west is affected")
		}
	})
}

func check(t *testing.T, row kvstore.Row) {
	tail, err := wire.ParseTail(row.Key)
	if err != nil {
		t.Fatalf("admitted key %q: %v", row.Key, err)
	}
	r := east()
	switch tail.Kind {
	case wire.KindNode:
		n, err := wire.DecodeNode(model.NodeKey{Cluster: "east", Name: tail.Name[0]}, row.Value)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range n.PodCIDRs.All() {
			if !inside(r.PodCIDRs, p) {
				t.Fatalf("admitted pod range %v", p)
			}
		}
		for _, a := range nodeAddrs(n) {
			if !sane(a) || contains(ourselves.PodCIDRs, a) || contains(r.PodCIDRs, a) || contains(nets("203.0.113.1/32", "198.51.100.0/30"), a) {
				t.Fatalf("admitted node address %v", a)
			}
		}
	case wire.KindEndpoint:
		if a, err := wire.EndpointAddr(tail); err != nil || !contains(r.PodCIDRs, a) {
			t.Fatalf("admitted endpoint %v, %v", a, err)
		}
	}
}

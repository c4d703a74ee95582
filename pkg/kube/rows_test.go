package kube

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

func addrsOf(list ...string) (a model.Addrs) {
	for _, s := range list {
		a = a.Add(netip.MustParseAddr(s))
	}
	return a
}

func TestNodeRow(t *testing.T) {
	opt := NodeOptions{Cluster: "east", Encap: model.EncapVXLAN, VXLANPort: 8472, VNI: 7473}
	base := model.Node{Key: model.NodeKey{Cluster: "east", Name: "n1"}, Encap: model.EncapVXLAN, VXLANPort: 8472, VNI: 7473}
	with := func(edit func(*model.Node)) model.Node { n := base; edit(&n); return n }
	type addrs = []corev1.NodeAddress
	for name, c := range map[string]struct {
		addrs addrs
		cidr  string
		cidrs []string
		want  model.Node
	}{
		"bare": {nil, "", nil, base},
		"dual stack": {addrs{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"}, {Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "198.51.100.1"}},
			"10.2.1.0/24", []string{"10.2.1.0/24", "fd00:2:0:1::/64"}, with(func(n *model.Node) {
				n.Internal, n.External = addrsOf("192.0.2.1", "2001:db8::1"), addrsOf("198.51.100.1")
				n.PodCIDRs = model.Prefixes{V4: netip.MustParsePrefix("10.2.1.0/24"), V6: netip.MustParsePrefix("fd00:2:0:1::/64")}
			})},
		"the first of a family counts": {addrs{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.9"}}, "", []string{"10.2.1.0/24", "10.2.2.0/24"},
			with(func(n *model.Node) {
				n.Internal, n.PodCIDRs.V4 = addrsOf("192.0.2.1"), netip.MustParsePrefix("10.2.1.0/24")
			})},
		"podCIDR without podCIDRs": {nil, "10.2.1.0/24", nil, with(func(n *model.Node) { n.PodCIDRs.V4 = netip.MustParsePrefix("10.2.1.0/24") })},
		"nonsense is left out":     {addrs{{Type: corev1.NodeInternalIP, Address: "x"}, {Type: corev1.NodeInternalIP, Address: "fe80::1%eth0"}}, "", []string{"y"}, base},
	} {
		t.Run(name, func(t *testing.T) {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: c.cidr, PodCIDRs: c.cidrs}, Status: corev1.NodeStatus{Addresses: c.addrs}}
			if got := NodeRow(n, opt); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestPeerRow(t *testing.T) {
	p := &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "u", Generation: 3},
		Spec: v1alpha1.PeerSpec{Endpoints: []string{"192.0.2.1:7473"}, Import: v1alpha1.Import{PodCIDRs: []string{"10.2.0.0/16", "x", "fd00:2::/48"}}}}
	row := PeerRow(p)
	p.Status.Nodes = 7
	if PeerRow(p) != row {
		t.Error("the status changes the row")
	}
	if d := cmp.Diff(p.Spec, row.Spec()); d != "" {
		t.Error(d)
	}
	if got := row.PodCIDRs(); len(got) != 2 || got[1] != netip.MustParsePrefix("fd00:2::/48") {
		t.Errorf("pod ranges %v", got)
	}
}

func TestAPIServers(t *testing.T) {
	port, yes, no, node := int32(7473), true, false, "n1"
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv6, Ports: []discoveryv1.EndpointPort{{Port: &port}, {}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"2001:db8::2"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"2001:db8::1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"2001:db8::3"}},
		}}
	rows := apiServers(s)
	want := map[string]APIServer{"[2001:db8::2]:7473": {Node: "n1"}, "[2001:db8::1]:7473": {Ready: true}, "[2001:db8::3]:7473": {Ready: true}}
	if d := cmp.Diff(want, rows); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"[2001:db8::1]:7473", "[2001:db8::3]:7473", "[2001:db8::2]:7473"}, Dialable(rows)); d != "" {
		t.Error(d)
	}
}

func TestExposure(t *testing.T) {
	s := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443, NodePort: 30443}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {Hostname: "lb.example"}}}}}
	if got, want := exposure(s), (Exposure{443, 30443, "203.0.113.1 lb.example"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// An object may stand for several rows, fewer after a change, and none after a list without it.
func TestRowStore(t *testing.T) {
	table := state.New[string, int]()
	table.Expect(Source)
	store := &rowStore[*corev1.Pod, string, int]{name: "test", table: table, held: map[string][]string{}, rows: func(p *corev1.Pod) map[string]int {
		out := map[string]int{}
		for k := range p.Labels {
			out[p.Name+"/"+k] = len(k)
		}
		return out
	}}
	pod := func(name string, labels ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{}}}
		for _, l := range labels {
			p.Labels[l] = ""
		}
		return p
	}
	step := func(what string, err error, synced bool, want map[string]int) {
		t.Helper()
		rows, s := table.Snapshot()
		if d := cmp.Diff(want, rows); d != "" || err != nil || s != synced {
			t.Fatalf("%s: %s %v, synced %v", what, d, err, s)
		}
	}
	step("add", store.Add(pod("a", "x", "yy")), false, map[string]int{"a/x": 1, "a/yy": 2})
	step("update", store.Update(pod("a", "yy")), false, map[string]int{"a/yy": 2})
	step("list", store.Replace([]any{pod("b", "z")}, "1"), true, map[string]int{"b/z": 1})
	step("delete what the list dropped", store.Delete(pod("a")), true, map[string]int{"b/z": 1})
	step("delete", store.Delete(pod("b")), true, map[string]int{})
	if store.Add("not a pod") == nil {
		t.Error("a string is taken for a pod")
	}
}

// A Secret does not show in logs.
func TestSecretPrintsNoKey(t *testing.T) {
	s := TLSSecret{Key: "hush", ResourceVersion: "7"}
	for _, got := range []string{s.String(), s.GoString()} {
		if got != "TLS secret at version 7" {
			t.Error(got)
		}
	}
}

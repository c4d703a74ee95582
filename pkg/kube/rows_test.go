package kube

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
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

func TestHostRow(t *testing.T) {
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	not := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse}
	away := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}
	bare := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}
	for name, c := range map[string]struct {
		labels     map[string]string
		conditions []corev1.NodeCondition
		want       lbpool.Node
	}{
		"new":             {nil, nil, lbpool.Node{}},
		"ready":           {map[string]string{"b": "2", "a": ""}, []corev1.NodeCondition{ready}, lbpool.Node{Alive: true, Labels: "a=,b=2"}},
		"not ready":       {nil, []corev1.NodeCondition{not}, lbpool.Node{Alive: true}},
		"away":            {nil, []corev1.NodeCondition{away}, lbpool.Node{}},
		"without network": {nil, []corev1.NodeCondition{bare, ready}, lbpool.Node{Alive: true, Apart: true}},
		"excluded": {map[string]string{corev1.LabelNodeExcludeBalancers: ""}, []corev1.NodeCondition{ready},
			lbpool.Node{Alive: true, Apart: true, Labels: corev1.LabelNodeExcludeBalancers + "="}},
	} {
		t.Run(name, func(t *testing.T) {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: c.labels}, Status: corev1.NodeStatus{Conditions: c.conditions,
				Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}}
			c.want.Addrs = addrsOf("192.0.2.1")
			if got := HostRow(n); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestPoolRow(t *testing.T) {
	no := false
	app := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}, MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "x", Operator: metav1.LabelSelectorOpDoesNotExist}}}
	bad := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "x", Operator: "Like"}}}
	for name, c := range map[string]struct {
		spec    v1alpha1.LoadBalancerPoolSpec
		want    lbpool.Pool
		invalid bool
	}{
		"plain": {v1alpha1.LoadBalancerPoolSpec{CIDRs: []string{"192.0.2.0/30"}}, lbpool.Pool{Blocks: "192.0.2.1-192.0.2.2"}, false},
		"all of it": {v1alpha1.LoadBalancerPoolSpec{Ranges: []v1alpha1.AddressRange{{Start: "192.0.2.4", Stop: "192.0.2.5"}}, ServiceSelector: app, Disabled: true,
			Announce: v1alpha1.Announce{Enabled: &no, NodeSelector: &metav1.LabelSelector{}}},
			lbpool.Pool{Blocks: "192.0.2.4-192.0.2.5", Services: "app=a,!x", Disabled: true, Silent: true}, false},
		"no addresses": {v1alpha1.LoadBalancerPoolSpec{}, lbpool.Pool{}, true},
		"bad selector": {v1alpha1.LoadBalancerPoolSpec{CIDRs: []string{"192.0.2.0/32"}, ServiceSelector: bad}, lbpool.Pool{Blocks: "192.0.2.0-192.0.2.0"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got := PoolRow(&v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Generation: 2, CreationTimestamp: metav1.Unix(7, 0)}, Spec: c.spec})
			if (got.Invalid != "") != c.invalid {
				t.Errorf("invalid: %q", got.Invalid)
			}
			c.want.UID, c.want.Generation, c.want.CreatedUnix, c.want.Invalid = "u", 2, 7, got.Invalid
			if got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestBalancedRow(t *testing.T) {
	ours, other := lbpool.Class, "example.com/other"
	vip := corev1.LoadBalancerIPModeVIP
	ingress := func(list ...string) (out []corev1.LoadBalancerIngress) {
		for _, a := range list {
			out = append(out, corev1.LoadBalancerIngress{IP: a, IPMode: &vip})
		}
		return out
	}
	mark := func(list string) []metav1.Condition {
		return []metav1.Condition{{Type: conditionAddress, Status: metav1.ConditionTrue, Reason: "OutOfPool", Message: list}}
	}
	for name, c := range map[string]struct {
		edit func(*corev1.Service)
		want lbpool.Service
	}{
		"new":           {func(*corev1.Service) {}, lbpool.Service{Balanced: true}},
		"of our class":  {func(s *corev1.Service) { s.Spec.LoadBalancerClass = &ours }, lbpool.Service{Balanced: true}},
		"of another":    {func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }, lbpool.Service{}},
		"of other type": {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, lbpool.Service{}},
		"families and labels": {func(s *corev1.Service) {
			s.Spec.IPFamilies, s.Labels = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, map[string]string{"b": "2", "a": "1"}
		}, lbpool.Service{Balanced: true, Families: "64", Labels: "a=1,b=2"}},
		"asks": {func(s *corev1.Service) {
			s.Annotations, s.Spec.LoadBalancerIP = map[string]string{RequestAnnotation: " 192.0.2.1, 2001:DB8::1 ,x"}, "192.0.2.9"
		}, lbpool.Service{Balanced: true, Request: "192.0.2.1 2001:db8::1", Malformed: "x"}},
		"asks as of old": {func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.9" }, lbpool.Service{Balanced: true, Request: "192.0.2.9"}},
		"has": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress, s.Status.Conditions = ingress("2001:db8::1", "192.0.2.1"), mark("192.0.2.1 2001:db8::1")
		}, lbpool.Service{Balanced: true, Ours: "192.0.2.1 2001:db8::1"}},
		"has others beside": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress, s.Status.Conditions = append(ingress("203.0.113.1", "192.0.2.1"), corev1.LoadBalancerIngress{Hostname: "lb"}), mark("192.0.2.1")
		}, lbpool.Service{Balanced: true, Ours: "192.0.2.1", Others: "203.0.113.1 lb"}},
		"has others only": {func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = ingress("203.0.113.1") }, lbpool.Service{Balanced: true, Others: "203.0.113.1"}},
		"was robbed":      {func(s *corev1.Service) { s.Status.Conditions = mark("192.0.2.1") }, lbpool.Service{Balanced: true, Torn: true}},
		"lost one": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress, s.Status.Conditions = ingress("192.0.2.1"), mark("192.0.2.1 2001:db8::1")
		}, lbpool.Service{Balanced: true, Ours: "192.0.2.1", Torn: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{UID: "u", CreationTimestamp: metav1.Unix(7, 0)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
			c.edit(s)
			c.want.UID, c.want.CreatedUnix = "u", 7
			if got := BalancedRow(s); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// TestBalancerPatch: what others have in the list stays, what was ours goes, and
// nothing is written that is there already.
func TestBalancerPatch(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{UID: "u", ResourceVersion: "5"}}
	vip := corev1.LoadBalancerIPModeVIP
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb"}, {IP: "192.0.2.1", IPMode: &vip}, {IP: "203.0.113.1", IPMode: &vip}}
	s.Status.Conditions = []metav1.Condition{{Type: conditionAddress, Status: metav1.ConditionTrue, Message: "192.0.2.1"}}
	ingress := func(addrs model.Addrs) string {
		patch, err := balancerPatch(s, addrs)
		if err != nil {
			t.Fatal(err)
		}
		if patch == nil {
			return "nothing"
		}
		var out struct {
			Metadata struct{ ResourceVersion string }
			Status   corev1.ServiceStatus
		}
		if err := json.Unmarshal(patch, &out); err != nil || out.Metadata.ResourceVersion != "5" {
			t.Fatal(string(patch), err)
		}
		text := ""
		for _, i := range out.Status.LoadBalancer.Ingress {
			text += i.IP + i.Hostname + " "
		}
		return text + out.Status.Conditions[0].Message
	}
	for addrs, want := range map[model.Addrs]string{
		addrsOf("192.0.2.1"):                "nothing",
		addrsOf("192.0.2.2", "2001:db8::1"): "192.0.2.2 2001:db8::1 lb 203.0.113.1 192.0.2.2 2001:db8::1",
		addrsOf("203.0.113.1"):              "203.0.113.1 lb 203.0.113.1", // taken over
		{}:                                  "lb 203.0.113.1 ",
	} {
		if got := ingress(addrs); got != want {
			t.Errorf("%v: got %q, want %q", addrs, got, want)
		}
	}
}

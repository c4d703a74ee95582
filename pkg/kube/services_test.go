package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func ptr[T any](v T) *T { return &v }

// testService has one port at 10.96.0.10:80.
func testService(edit func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", CreationTimestamp: metav1.Unix(100, 0)},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}}}
	edit(s)
	return s
}

// TestServiceRows: what is odd in a Service is read as kube-proxy reads it, or
// left for the planner to say; it never opens what was meant to be closed.
func TestServiceRows(t *testing.T) {
	base := model.ServicePort{Protocol: 6, Port: 80, ClusterIPs: addrsOf("10.96.0.10"), CreatedUnix: 100}
	with := func(edit func(*model.ServicePort)) *model.ServicePort { r := base; edit(&r); return &r }
	for _, tt := range []struct {
		name string
		edit func(*corev1.Service)
		want *model.ServicePort // nil: no row
	}{
		{"plain", func(*corev1.Service) {}, &base},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, nil},
		{"type changed to ExternalName, address still there", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil},
		{"no address yet", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }, nil},
		{"clusterIP without clusterIPs", func(s *corev1.Service) { s.Spec.ClusterIPs = nil }, &base},
		{"leading zeros, as the API once let pass", func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.ExternalIPs = "10.096.0.010", []string{"10.096.0.010"}, []string{"198.051.100.007"}
		}, with(func(r *model.ServicePort) { r.ExternalIPs = "198.51.100.7" })},
		{"external addresses: nonsense, doubles, with a zone", func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"", "x", "198.51.100.7", "fe80::1%eth0", "198.51.100.7", "::ffff:198.51.100.8"}
		}, with(func(r *model.ServicePort) { r.ExternalIPs = "198.51.100.7 198.51.100.8" })},
		{"load balancer in mode Proxy, and one by name", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.7", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
				{IP: "198.51.100.8", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}}
		}, with(func(r *model.ServicePort) { r.LoadBalancerIPs = "198.51.100.8" })},
		{"source ranges with blanks and leading zeros, of both families", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.7/24 ", "2001:db8::/32", "010.0.0.0/8"}
		}, with(func(r *model.ServicePort) { r.SourceRanges = "10.0.0.0/8 203.0.113.0/24 2001:db8::/32" })},
		{"source ranges that are none stay in the row", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"everybody but me", "10.0.0.0/33"} },
			with(func(r *model.ServicePort) { r.SourceRanges = "10.0.0.0/33 everybody_but_me" })},
		{"empty source ranges are none", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"", " "} }, &base},
		{"affinity without a timeout", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP },
			with(func(r *model.ServicePort) { r.AffinitySeconds = 10800 })},
		{"the longest affinity", func(s *corev1.Service) { affinity(s, 86400) }, with(func(r *model.ServicePort) { r.AffinitySeconds = 86400 })},
		{"affinity for no time", func(s *corev1.Service) { affinity(s, 0) }, &base},
		{"affinity for less than no time", func(s *corev1.Service) { affinity(s, -1) }, &base},
		{"affinity for longer than there is", func(s *corev1.Service) { affinity(s, 1<<31-1) }, with(func(r *model.ServicePort) { r.AffinitySeconds = 86400 })},
		{"a health check port that is not asked for", func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 31000 }, &base},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := map[model.ServicePortKey]model.ServicePort{}
			if tt.want != nil {
				want[model.ServicePortKey{Namespace: "default", Name: "web"}] = *tt.want
			}
			got := ServiceRows(testService(tt.edit))
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b model.ServicePort) bool { return a == b })); d != "" && len(want)+len(got) > 0 {
				t.Error(d)
			}
		})
	}
}

func affinity(s *corev1.Service, seconds int32) {
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
}

func endpoint(addr string, edit func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}}
	if edit != nil {
		edit(&e)
	}
	return e
}

// TestSliceRow: whatever the API lets through can be read again, and one odd
// endpoint does not take the others with it.
func TestSliceRow(t *testing.T) {
	yes, no := ptr(true), ptr(false)
	ready := wire.SliceEndpoint{Addr: netip.MustParseAddr("10.1.0.1"), Ready: true, Serving: true}
	with := func(edit func(*wire.SliceEndpoint)) wire.SliceEndpoint { e := ready; edit(&e); return e }
	long := strings.Repeat("n", 253)
	eight := make([]discoveryv1.ForNode, 8)
	names := make([]string, 8)
	for i := range eight {
		names[i] = fmt.Sprint(i, long[1:])
		eight[i].Name = names[i]
	}
	for _, tt := range []struct {
		name      string
		endpoints []discoveryv1.Endpoint
		want      []wire.SliceEndpoint
	}{
		{"no conditions: ready and serving", []discoveryv1.Endpoint{endpoint("10.1.0.1", nil)}, []wire.SliceEndpoint{ready}},
		{"not ready, nothing said of serving", []discoveryv1.Endpoint{endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) {
			e.Conditions = discoveryv1.EndpointConditions{Ready: no, Terminating: yes}
		})}, []wire.SliceEndpoint{with(func(e *wire.SliceEndpoint) { e.Ready, e.Terminating = false, true })}},
		{"twice, the readier one counts", []discoveryv1.Endpoint{
			endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) { e.Conditions = discoveryv1.EndpointConditions{Ready: no, Serving: no} }),
			endpoint("10.1.0.1", nil)}, []wire.SliceEndpoint{ready}},
		{"twice, one that terminates does not count", []discoveryv1.Endpoint{
			endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) {
				e.Conditions = discoveryv1.EndpointConditions{Ready: yes, Terminating: yes}
			}),
			endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) { e.Conditions = discoveryv1.EndpointConditions{Ready: no, Serving: no} })},
			[]wire.SliceEndpoint{with(func(e *wire.SliceEndpoint) { e.Ready, e.Serving = false, false })}},
		{"of another family, of none, without address", []discoveryv1.Endpoint{endpoint("2001:db8::1", nil), endpoint("x", nil), {}, endpoint("010.001.0.1", nil), endpoint("0::ffff:10.1.0.2", nil)},
			[]wire.SliceEndpoint{ready, with(func(e *wire.SliceEndpoint) { e.Addr = netip.MustParseAddr("10.1.0.2") })}},
		{"a zone that nobody checked", []discoveryv1.Endpoint{endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) { e.Zone, e.NodeName = ptr("zone \x1b[31m\u00e9"), &long })},
			[]wire.SliceEndpoint{with(func(e *wire.SliceEndpoint) { e.Node = long })}},
		{"a zone that is too long", []discoveryv1.Endpoint{endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) { e.Zone = &long })}, []wire.SliceEndpoint{ready}},
		{"as many and long hints as there can be", []discoveryv1.Endpoint{endpoint("10.1.0.1", func(e *discoveryv1.Endpoint) { e.Hints = &discoveryv1.EndpointHints{ForNodes: eight} })},
			[]wire.SliceEndpoint{with(func(e *wire.SliceEndpoint) { e.ForNodes = strings.Join(names, ",") })}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
				AddressType: discoveryv1.AddressTypeIPv4, Endpoints: tt.endpoints}
			got := readSlice(t, s)
			if d := cmp.Diff(tt.want, got.Endpoints, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

func readSlice(t *testing.T, s *discoveryv1.EndpointSlice) wire.Slice {
	t.Helper()
	row, ok := SliceRow(s)
	if !ok {
		t.Fatal("no row")
	}
	got, err := wire.DecodeSlice([]byte(row))
	if err != nil {
		t.Fatalf("the row can't be read: %v", err)
	}
	return got
}

// TestSliceRowLimits: more ports than the API documents, though it takes 20,000,
// and as many endpoints as there can be, with long names.
func TestSliceRowLimits(t *testing.T) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: strings.Repeat("w", 63)}},
		AddressType: discoveryv1.AddressTypeIPv6}
	protocol, domain := corev1.ProtocolUDP, "kubernetes.io/h2c"
	longest := strings.Repeat("d", 253) + "/" + strings.Repeat("p", 63)
	s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr(strings.Repeat("n", 63)), Protocol: &protocol, Port: ptr(int32(65535)), AppProtocol: &longest})
	for i := range 2_999 {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr(fmt.Sprintf("%015d", i)), Protocol: &protocol, Port: ptr(int32(i + 1)), AppProtocol: &domain})
	}
	for i := range 1000 {
		s.Endpoints = append(s.Endpoints, endpoint(fmt.Sprintf("fd00:1:%x::%x", i%7, i), func(e *discoveryv1.Endpoint) { e.NodeName = ptr(fmt.Sprintf("node-%055d", i)) }))
	}
	got := readSlice(t, s)
	if len(got.Ports) != 3000 || len(got.Endpoints) != 1000 {
		t.Errorf("%d ports, %d endpoints; want 3000, 1000", len(got.Ports), len(got.Endpoints))
	}
	s.Ports = []discoveryv1.EndpointPort{{}, {Port: ptr(int32(80))}}
	if got := readSlice(t, s); len(got.Ports) != 1 || got.Ports[0] != (wire.Port{Protocol: 6, Port: 80}) {
		t.Errorf("ports %+v, want 80 alone", got.Ports)
	}
	s.AddressType = discoveryv1.AddressTypeFQDN
	if _, ok := SliceRow(s); ok {
		t.Error("a slice of host names has a row")
	}
}

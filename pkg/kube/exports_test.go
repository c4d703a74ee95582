package kube

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

func TestExportedServiceRow(t *testing.T) {
	key := model.ServiceKey{Namespace: "shop", Name: "web"}
	plain := wire.Export{Type: mcs.ClusterSetIP, SessionAffinity: "None", IPFamilies: []string{"IPv6", "IPv4"}, Ports: []wire.Port{{Name: "http", Protocol: 6, Port: 80}}}
	with := func(edit func(*wire.Export)) string { e := plain; edit(&e); return string(e.Encode()) }
	for name, tt := range map[string]struct {
		edit func(*corev1.Service)
		want mcs.Service
	}{
		"plain": {func(*corev1.Service) {}, mcs.Service{Spec: string(plain.Encode())}},
		"everything": {func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(10))}}
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			s.Spec.TrafficDistribution = ptr("PreferClose")
			s.Spec.Ports[0].AppProtocol = ptr("kubernetes.io/h2c")
			s.Spec.Type = corev1.ServiceTypeLoadBalancer // exported like any other
		}, mcs.Service{Spec: with(func(e *wire.Export) {
			e.SessionAffinity, e.AffinitySeconds, e.InternalPolicy, e.TrafficDistribution = "ClientIP", 10, "Local", "PreferClose"
			e.Ports = []wire.Port{{Name: "http", Protocol: 6, Port: 80, AppProtocol: "kubernetes.io/h2c"}}
		})}},
		"headless":     {func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, mcs.Service{Spec: with(func(e *wire.Export) { e.Type = mcs.Headless })}},
		"ExternalName": {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, mcs.Service{Spec: string(plain.Encode()), ExternalName: true}},
		"annotations": {func(s *corev1.Service) {
			s.Annotations = map[string]string{mcs.AnnotationGlobal: "true", mcs.AnnotationAffinity: "local"}
		}, mcs.Service{Spec: string(plain.Encode()), Global: mcs.Global{Global: true, Shared: true, Clusters: "local, *"}}},
		"annotations that are wrong": {func(s *corev1.Service) {
			s.Annotations = map[string]string{mcs.AnnotationGlobal: "true", mcs.AnnotationShared: "x", mcs.AnnotationAffinity: "y"}
		}, mcs.Service{Spec: string(plain.Encode()), Global: mcs.Global{Global: true, Shared: true}, Problem: `annotation clustermesh.io/shared: value "x" is not allowed; write "true" or "false"; ` +
			`annotation clustermesh.io/affinity: value "y" is not allowed; write "none", "local" or "remote"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{mcs.LabelServiceName: "other"}},
				Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", SessionAffinity: corev1.ServiceAffinityNone, IPFamilies: []corev1.IPFamily{"IPv6", "IPv4"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
			tt.edit(s)
			if d := cmp.Diff(map[model.ServiceKey]mcs.Service{key: tt.want}, ExportedServiceRow(s)); d != "" {
				t.Error(d)
			}
			if got := DerivedAddrsRow(s); got != nil {
				t.Errorf("derived: %v", got)
			}
		})
	}
}

// TestDerivedObjects: derived Services are not exported again, and derived slices
// say whose endpoints they hold.
func TestDerivedObjects(t *testing.T) {
	key := mcs.DerivedKey(model.ServiceKey{Namespace: "shop", Name: "web"}, mcs.IPv6)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{mcs.LabelServiceName: "web"}},
		Spec: corev1.ServiceSpec{ClusterIP: "fd00::1", ClusterIPs: []string{"fd00::1", "10.96.0.1"}}}
	if got := ExportedServiceRow(s); got != nil {
		t.Errorf("exported again: %v", got)
	}
	if d := cmp.Diff(map[model.ServiceKey]mcs.DerivedAddrs{key: {Import: "web", Addrs: "fd00::1 10.96.0.1"}}, DerivedAddrsRow(s)); d != "" {
		t.Error(d)
	}
	s.Spec.ClusterIP = ""
	if got := DerivedAddrsRow(s); got != nil {
		t.Errorf("no address yet: %v", got)
	}
	text, ok := SliceRow(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: key.Name, mcs.LabelSourceCluster: "east"}}})
	if row, err := wire.DecodeSlice([]byte(text)); !ok || err != nil || row.Source != "east" || row.Service != key.Name {
		t.Errorf("%+v, %v, %v", row, ok, err)
	}
}

package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
)

func TestImportRow(t *testing.T) {
	for name, c := range map[string]struct {
		spec mcsv1beta1.ServiceImportSpec
		want model.ServiceImport
	}{
		"nothing yet": {mcsv1beta1.ServiceImportSpec{Type: mcsv1beta1.ClusterSetIP}, model.ServiceImport{}},
		"dual stack": {mcsv1beta1.ServiceImportSpec{Type: mcsv1beta1.ClusterSetIP, IPs: []string{"fd00::1", "10.0.0.1"},
			Ports: []mcsv1beta1.ServicePort{{Name: "tcp", Port: 42}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 42}}},
			model.ServiceImport{IPs: addrsOf("10.0.0.1", "fd00::1"), Ports: "tcp/tcp/42 udp/udp/42"}},
		"one port without a name": {mcsv1beta1.ServiceImportSpec{Ports: []mcsv1beta1.ServicePort{{Protocol: corev1.ProtocolSCTP, Port: 1}}},
			model.ServiceImport{Ports: "/sctp/1"}},
		"headless has no address": {mcsv1beta1.ServiceImportSpec{Type: mcsv1beta1.Headless, IPs: []string{"10.0.0.1"}}, model.ServiceImport{Headless: true}},
		"nonsense is left out":    {mcsv1beta1.ServiceImportSpec{IPs: []string{"x", "10.0.0.2"}}, model.ServiceImport{IPs: addrsOf("10.0.0.2")}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &mcsv1beta1.ServiceImport{Spec: c.spec, Status: mcsv1beta1.ServiceImportStatus{Clusters: []mcsv1beta1.ClusterStatus{{Cluster: "east"}}}}
			if got := ImportRow(s); got != c.want {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestImportSliceRow(t *testing.T) {
	yes, no, host, http, port, udp := true, false, "web-0", "http", int32(80), corev1.ProtocolUDP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{mcs.LabelServiceName: "web", mcs.LabelSourceCluster: "east"},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05Z"}},
		Ports: []discoveryv1.EndpointPort{{Name: &http, Port: &port}, {Protocol: &udp}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.0.0.1"}, Hostname: &host},
			{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"web.example"}},
		}}
	want := model.ImportSlice{Service: "web", Cluster: "east", Endpoints: "10.0.0.1=web-0 10.0.0.2", Ports: "http/tcp/80 /udp/0", ChangedUnixMilli: 1767323045000}
	if got := ImportSliceRow(s); got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	s.Endpoints[0], s.Endpoints[1] = s.Endpoints[1], s.Endpoints[0]
	if got := ImportSliceRow(s); got != want {
		t.Error("the order of endpoints changes the row: ", got)
	}
}

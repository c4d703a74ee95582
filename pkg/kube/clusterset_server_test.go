package kube_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

const importCRD = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"serviceimports.multicluster.x-k8s.io",
"annotations":{"api-approved.kubernetes.io":"https://github.com/kubernetes/enhancements/pull/1646"}},
"spec":{"group":"multicluster.x-k8s.io","scope":"Namespaced","names":{"kind":"ServiceImport","listKind":"ServiceImportList","plural":"serviceimports","singular":"serviceimport"},
"versions":[{"name":"v1alpha1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

const importObject = `{"apiVersion":"multicluster.x-k8s.io/v1alpha1","kind":"ServiceImport","metadata":{"name":"web","namespace":"default"},
"spec":{"type":"ClusterSetIP","ips":["10.99.0.1"],"ports":[{"name":"http","port":80}]}}`

// What a resolver reads. The definition of ServiceImports comes late, and only
// in the older version.
func testClusterSet(t *testing.T, c *kube.Client) {
	imports, slices := state.New[model.ServiceKey, model.ServiceImport](), state.New[model.ServiceKey, model.ImportSlice]()
	namespaces, service := state.New[string, model.Namespace](), state.New[string, model.Addrs]()
	for _, expect := range []func(...string){imports.Expect, slices.Expect, namespaces.Expect, service.Expect} {
		expect(kube.Source)
	}
	run(t, func(ctx context.Context) error { return c.RunServiceImports(ctx, quiet, imports) })
	run(t, func(ctx context.Context) error { return c.RunImportSlices(ctx, quiet, slices) })
	run(t, func(ctx context.Context) error { return c.RunNamespaces(ctx, quiet, namespaces) })
	run(t, func(ctx context.Context) error { return c.RunClusterIPs(ctx, quiet, "clustermesh-dns", service) })
	eventually(t, "the rest is read", func() bool { return slices.Synced() && namespaces.Synced() && service.Synced() })
	if imports.Synced() {
		t.Fatal("a list was read of a resource that is not there")
	}
	post := func(path, body string) {
		t.Helper()
		err := c.Discovery().RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
		if err != nil {
			t.Fatal(err)
		}
	}
	post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", importCRD)
	eventually(t, "ServiceImports are read", imports.Synced)
	post("/apis/multicluster.x-k8s.io/v1alpha1/namespaces/default/serviceimports", importObject)
	key := model.ServiceKey{Namespace: "default", Name: "web"}
	eventually(t, "the import is seen", func() bool { s, _ := imports.Get(key); return s.Ports == "http/tcp/80" && s.IPs.V4.IsValid() })

	slice := func(name string, labels map[string]string) {
		t.Helper()
		_, err := c.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.2.0.1"}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	slice("local", map[string]string{discoveryv1.LabelServiceName: "web"})
	slice("web-east", map[string]string{mcs.LabelServiceName: "web", mcs.LabelSourceCluster: "east"})
	eventually(t, "the slice is seen", func() bool { return slices.Len() == 1 })
	if got, want := slices.Rows(), (model.ImportSlice{Service: "web", Cluster: "east", Endpoints: "10.2.0.1"}); got[model.ServiceKey{Namespace: "default", Name: "web-east"}] != want {
		t.Errorf("got %v, want %v", got, want)
	}
	svc, err := c.CoreV1().Services(c.Namespace).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "clustermesh-dns"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Service is seen", func() bool { a, _ := service.Get("clustermesh-dns"); return a.V4.String() == svc.Spec.ClusterIP })
	if _, ok := namespaces.Get("kube-system"); !ok {
		t.Error("a namespace is missing")
	}
}

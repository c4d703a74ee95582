package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mcs"
)

// importCRD serves ServiceImports in both versions: CoreDNS reads the older one.
const importCRD = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"serviceimports.multicluster.x-k8s.io",
"annotations":{"api-approved.kubernetes.io":"https://github.com/kubernetes/enhancements/pull/1646"}},
"spec":{"group":"multicluster.x-k8s.io","scope":"Namespaced","names":{"kind":"ServiceImport","listKind":"ServiceImportList","plural":"serviceimports","singular":"serviceimport"},
"versions":[{"name":"v1alpha1","served":true,"storage":false,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}},
{"name":"v1beta1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

const importsPath = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/"

// slice is an EndpointSlice in short: endpoints "address" or "address=hostname",
// those that are not ready behind an exclamation mark.
type slice struct{ cluster, endpoints, ports string }

// imported is a ServiceImport with its slices; ports are "name/PROTOCOL/number".
type imported struct {
	namespace, name, ips, ports string
	headless                    bool
	slices                      []slice
}

// fixture is what the questions of pkg/dns/zone are about.
func fixture() []imported {
	const web = "http/TCP/80 metrics/TCP/9090"
	var big strings.Builder
	for i := range 100 {
		fmt.Fprintf(&big, "10.4.0.%d ", i+1)
	}
	long := func(c string) string { return strings.Repeat(c, 63) }
	return []imported{
		{"shop", "web", "10.99.0.1 fd00:99::1", web, false, []slice{{"east", "10.2.0.7=web-0", web}}},
		{"shop", "v4", "10.99.0.2", "/TCP/80", false, nil},
		{"shop", "hello", "10.99.0.3", "tcp/TCP/42 udp/UDP/42", false, nil},
		{"shop", "pending", "", web, false, nil},
		{"shop", "portless", "10.99.0.4", "", false, nil},
		{"shop", "db", "", "sql/TCP/5432", true, []slice{
			{"east", "10.2.0.1=db-0 10.2.0.2=db-1 !10.2.0.3=db-2", "sql/TCP/5432 repl/TCP/5433"},
			{"east", "fd00:2::1=db-0 fd00:2::2=db-1", "sql/TCP/5432 repl/TCP/5433"},
			{"west", "10.3.0.1=db-0", "sql/TCP/5432"}}},
		{"shop", "pods", "", "", true, []slice{{"east", "10.2.0.1 10.2.0.2", "/TCP/42 dns/UDP/42"}, {"east", "10.2.0.2 10.2.0.3", "/TCP/42 dns/UDP/42"},
			{"east", "fd00:2::", "/TCP/42 dns/UDP/42"}}},
		{"shop", "bare", "", "", true, []slice{{"east", "10.2.0.9=bare-0", ""}}},
		{"shop", "down", "", web, true, []slice{{"east", "!10.2.0.1", web}}},
		{"shop", "alone", "", web, true, nil},
		{"shop", "twice", "", "", true, []slice{{"east", "10.2.0.1=same 10.2.0.2=same", "a/TCP/1"}, {"east", "10.2.0.1=same 10.2.0.3=other", "b/TCP/2"}}},
		{"shop", "dotted", "", "", true, []slice{{"east.prod", "10.2.0.1=pod-0", "a/TCP/1"}}},
		{"shop", "big", "", "", true, []slice{{"east", big.String(), "a/TCP/1"}}},
		{long("n"), long("x"), "", "", true, []slice{{long("c"), "10.2.0.1=" + long("h") + " 10.2.0.2=ok", "a/TCP/1"}}},
	}
}

// create makes an import and its slices, in a namespace that is there.
func (i imported) create(ctx context.Context, c *kube.Client) error {
	obj := mcsv1beta1.ServiceImport{TypeMeta: metav1.TypeMeta{APIVersion: "multicluster.x-k8s.io/v1beta1", Kind: "ServiceImport"},
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: i.name}, Spec: mcsv1beta1.ServiceImportSpec{Type: mcsv1beta1.ClusterSetIP, IPs: strings.Fields(i.ips)}}
	if i.headless {
		obj.Spec.Type = mcsv1beta1.Headless
	}
	for _, p := range ports(i.ports) {
		obj.Spec.Ports = append(obj.Spec.Ports, mcsv1beta1.ServicePort{Name: *p.Name, Protocol: *p.Protocol, Port: *p.Port})
	}
	body, err := json.Marshal(obj)
	if err != nil {
		return err
	}
	if err := c.Discovery().RESTClient().Post().AbsPath(importsPath+i.namespace+"/serviceimports").SetHeader("Content-Type", "application/json").
		Body(body).Do(ctx).Error(); err != nil {
		return fmt.Errorf("create import %s: %w", i.name, err)
	}
	for n, s := range i.slices {
		if _, err := c.DiscoveryV1().EndpointSlices(i.namespace).Create(ctx, s.object(i.name, n), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create slice %d of %s: %w", n, i.name, err)
		}
	}
	return nil
}

func (s slice) object(service string, n int) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service, n),
		Labels: map[string]string{mcs.LabelServiceName: service, mcs.LabelSourceCluster: s.cluster}}, AddressType: discoveryv1.AddressTypeIPv4, Ports: ports(s.ports)}
	for f := range strings.FieldsSeq(s.endpoints) {
		f, unready := strings.CutPrefix(f, "!")
		addr, host, named := strings.Cut(f, "=")
		e := discoveryv1.Endpoint{Addresses: []string{addr}}
		if ready := !unready; unready || len(out.Endpoints)%2 == 0 {
			e.Conditions.Ready = &ready
		}
		if named {
			e.Hostname = &host
		}
		if strings.Contains(addr, ":") {
			out.AddressType = discoveryv1.AddressTypeIPv6
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out
}

func ports(text string) (out []discoveryv1.EndpointPort) {
	for f := range strings.FieldsSeq(text) {
		part := strings.Split(f, "/")
		protocol, number := corev1.Protocol(part[1]), int32(0)
		_, _ = fmt.Sscan(part[2], &number)
		out = append(out, discoveryv1.EndpointPort{Name: &part[0], Protocol: &protocol, Port: &number})
	}
	return out
}

// createAll makes the definition of ServiceImports, namespaces and imports.
func createAll(t *testing.T, c *kube.Client, namespaces []string, list []imported) {
	t.Helper()
	err := c.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
		SetHeader("Content-Type", "application/json").Body([]byte(importCRD)).Do(t.Context()).Error()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range namespaces {
		if _, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "ServiceImports are served", func() bool {
		return c.Discovery().RESTClient().Get().AbsPath(importsPath+namespaces[0]+"/serviceimports").Do(t.Context()).Error() == nil
	})
	for _, i := range list {
		if err := i.create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

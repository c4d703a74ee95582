package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

func endpoints(addresses ...string) *discoveryv1.EndpointSlice {
	port := int32(6443)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{"kubernetes.io/service-name": "kubernetes"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: addresses}},
		Ports:      []discoveryv1.EndpointPort{{Port: &port}},
	}
}

func kubeadm(networking string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kubeadm-config"},
		Data:       map[string]string{"ClusterConfiguration": "networking: " + networking},
	}
}

func staticPod(component string, command ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: component + "-cp", Labels: map[string]string{"component": component}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Command: command}}},
	}
}

func TestCompleted(t *testing.T) {
	cidrs := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:96::/112"}}}
	cluster := func(podCIDRs, serviceCIDRs []any) map[string]any {
		values := map[string]any{
			"cluster":    map[string]any{"name": "east", "podCIDRs": podCIDRs},
			"kubernetes": map[string]any{"host": "192.0.2.10", "port": int64(6443)},
		}
		if serviceCIDRs != nil {
			setValue(values, serviceCIDRs, "cluster", "serviceCIDRs")
		}
		return values
	}
	tests := map[string]struct {
		context string
		user    string
		objects []runtime.Object
		want    map[string]any
		err     string
	}{
		"kubeadm, dual stack": {
			context: "east", objects: []runtime.Object{endpoints("192.0.2.10"), cidrs, kubeadm(`{podSubnet: "10.1.0.0/16,fd00:1::/48"}`)},
			want: cluster([]any{"10.1.0.0/16", "fd00:1::/48"}, []any{"10.96.0.0/16", "fd00:96::/112"}),
		},
		"static pods, old Kubernetes": {
			context: "east", objects: []runtime.Object{
				endpoints("192.0.2.10"),
				staticPod("kube-controller-manager", "kube-controller-manager", "--cluster-cidr=10.1.0.0/16"),
				staticPod("kube-apiserver", "kube-apiserver", "--service-cluster-ip-range=10.96.0.0/12"),
			},
			want: cluster([]any{"10.1.0.0/16"}, []any{"10.96.0.0/12"}),
		},
		"the user's values win": {
			context: "kubernetes-admin@kubernetes", user: `{cluster: {name: east, podCIDRs: [10.5.0.0/16], serviceCIDRs: []}, kubernetes: {host: k.example.org}}`,
			want: map[string]any{
				"cluster":    map[string]any{"name": "east", "podCIDRs": []any{"10.5.0.0/16"}, "serviceCIDRs": []any{}},
				"kubernetes": map[string]any{"host": "k.example.org"},
			},
		},
		"no name":       {context: "admin@east", err: "--cluster-name NAME"},
		"no endpoint":   {context: "east", err: "--set kubernetes.host=ADDRESS"},
		"no pod CIDRs":  {context: "east", objects: []runtime.Object{endpoints("192.0.2.10")}, err: "--set cluster.podCIDRs={10.1.0.0/16}"},
		"broken config": {context: "east", objects: []runtime.Object{endpoints("192.0.2.10"), kubeadm(`{`)}, err: "kubeadm-config"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fakes := &kubeCluster{context: tt.context, typed: fake.NewClientset(tt.objects...)}
			got, err := completed(t.Context(), fakes, parseValues(t, tt.user), func(finding) {})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

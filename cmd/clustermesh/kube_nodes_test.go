package main

import (
	"net/netip"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/clustermesh/clustermesh/pkg/config"
)

func TestCheckNodes(t *testing.T) {
	node := func(name string, cidrs ...string) runtime.Object {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	}
	kernel := func(name, version string) runtime.Object {
		n := node(name, "10.1.0.0/24").(*corev1.Node)
		n.Status.NodeInfo.KernelVersion = version
		return n
	}
	kubeProxy := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-proxy"}}
	tests := map[string]struct {
		nodes       []runtime.Object
		mode, proxy string
		err, warn   string
	}{
		"fits":                {nodes: []runtime.Object{node("a", "10.1.0.0/24", "fd00:1:0:1::/64")}},
		"outside":             {nodes: []runtime.Object{node("a", "10.1.0.0/24"), node("b", "10.2.7.0/24")}, err: "10.2.7.0/24, which node b has for its pods; give all pod CIDRs of the cluster, for example --set cluster.podCIDRs={10.2.0.0/16}"},
		"bigger than pool":    {nodes: []runtime.Object{node("a", "10.1.0.0/12")}, err: "does not contain 10.1.0.0/12"},
		"other family":        {nodes: []runtime.Object{node("a", "fd00:2::/64")}, err: "{fd00:2::/56}"},
		"none yet":            {nodes: []runtime.Object{node("a")}, warn: "nodes without pod CIDR: a; kube-controller-manager"},
		"none, from our pool": {nodes: []runtime.Object{node("a")}, mode: config.IPAMClusterPool},
		"no nodes":            {},
		"oldest kernel":       {nodes: []runtime.Object{kernel("a", "5.15.0-91-generic"), kernel("b", "6.1.0+")}},
		"old kernel":          {nodes: []runtime.Object{kernel("a", "6.1.0"), kernel("b", "5.4.17-2136.el8uek.x86_64")}, warn: "nodes with a kernel before Linux 5.15: b (5.4.17-2136.el8uek.x86_64); clustermesh is not tested there"},
		"older kernel":        {nodes: []runtime.Object{kernel("a", "4.18.0")}, warn: "nodes with a kernel before Linux 5.15: a (4.18.0); clustermesh is"},
		"kernel not told":     {nodes: []runtime.Object{kernel("a", "")}},
		"kube-proxy runs":     {nodes: []runtime.Object{kubeProxy}, warn: "kube-proxy runs in this cluster, and clustermesh replaces it"},
		"kube-proxy stays":    {nodes: []runtime.Object{kubeProxy}, proxy: config.KubeProxyKeep},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			values := config.Default()
			values.Cluster.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}
			if tt.mode != "" {
				values.IPAM.Mode = tt.mode
			}
			if tt.proxy != "" {
				values.Services.KubeProxy = tt.proxy
			}
			var warned string
			cluster := &kubeCluster{typed: fake.NewClientset(tt.nodes...)}
			err := checkCluster(t.Context(), cluster, values, func(w string) { warned = w })
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if (warned == "") != (tt.warn == "") || !strings.HasPrefix(warned, tt.warn) {
				t.Errorf("warning %q, want %q", warned, tt.warn)
			}
		})
	}
}

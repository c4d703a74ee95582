package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// finding is a value of the chart that the cluster itself told.
type finding struct {
	path   []string
	value  any
	origin string // where it was read, for the user
}

func (f finding) String() string {
	return fmt.Sprintf("%s = %v (%s)", strings.Join(f.path, "."), f.value, f.origin)
}

// detector finds the value at path, and those that belong to it, where the user did not give it.
type detector struct {
	path []string
	find func(context.Context) ([]finding, error)
}

func detectors(cluster *kubeCluster) []detector {
	name, host := []string{"cluster", "name"}, []string{"kubernetes", "host"}
	pods, services := []string{"cluster", "podCIDRs"}, []string{"cluster", "serviceCIDRs"}
	return []detector{
		{name, func(context.Context) ([]finding, error) { return detectName(name, cluster.context) }},
		{host, func(ctx context.Context) ([]finding, error) { return detectHost(ctx, cluster.typed) }},
		{pods, func(ctx context.Context) ([]finding, error) { return detectPodCIDRs(ctx, cluster.typed, pods) }},
		{services, func(ctx context.Context) ([]finding, error) { return detectServiceCIDRs(ctx, cluster.typed, services) }},
	}
}

func detectName(path []string, context string) ([]finding, error) {
	if problems := validation.IsDNS1123Label(context); len(problems) > 0 {
		return nil, fmt.Errorf("cluster.name: the context's name %q does not serve as one (%s); give --cluster-name NAME", context, problems[0])
	}
	return []finding{{path, context, "name of the context"}}, nil
}

// detectHost reads where the API server itself listens, since the address of its Service works only once there is a
// network.
func detectHost(ctx context.Context, client kubernetes.Interface) ([]finding, error) {
	const remedy = "give --set kubernetes.host=ADDRESS --set kubernetes.port=PORT, an address of the API server that every node reaches"
	slices, err := client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("kubernetes.host: list the endpoints of the Service kubernetes in namespace default: %w; %s", err, remedy)
	}
	for _, slice := range slices.Items {
		if len(slice.Endpoints) == 0 || len(slice.Endpoints[0].Addresses) == 0 || len(slice.Ports) == 0 || slice.Ports[0].Port == nil {
			continue
		}
		const origin = "endpoint of the Service kubernetes"
		return []finding{
			{[]string{"kubernetes", "host"}, slice.Endpoints[0].Addresses[0], origin},
			{[]string{"kubernetes", "port"}, int64(*slice.Ports[0].Port), origin},
		}, nil
	}
	return nil, fmt.Errorf("kubernetes.host: the Service kubernetes in namespace default has no endpoint; %s", remedy)
}

func detectPodCIDRs(ctx context.Context, client kubernetes.Interface, path []string) ([]finding, error) {
	sources := []cidrSource{
		kubeadmSource("podSubnet"),
		staticPodSource("kube-controller-manager", "--cluster-cidr"),
	}
	found, err := firstCIDRs(ctx, client, path, sources)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("cluster.podCIDRs: neither kubeadm's configuration nor kube-controller-manager says it; " +
			"give the addresses of all pods, for example --set cluster.podCIDRs={10.1.0.0/16}")
	}
	return found, nil
}

// detectServiceCIDRs finds nothing on clusters before Kubernetes 1.33 that kubeadm did not make. That is no error:
// the list only serves to refuse peers that overlap it.
func detectServiceCIDRs(ctx context.Context, client kubernetes.Interface, path []string) ([]finding, error) {
	return firstCIDRs(ctx, client, path, []cidrSource{
		serviceCIDRSource,
		kubeadmSource("serviceSubnet"),
		staticPodSource("kube-apiserver", "--service-cluster-ip-range"),
	})
}

// cidrSource reads prefixes from one place and names it; no prefixes and no error if the place is not there.
type cidrSource func(context.Context, kubernetes.Interface) (cidrs []string, origin string, err error)

func firstCIDRs(ctx context.Context, client kubernetes.Interface, path []string, sources []cidrSource) ([]finding, error) {
	for _, source := range sources {
		cidrs, origin, err := source(ctx, client)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; give it with --set %s={…}", strings.Join(path, "."), err, strings.Join(path, "."))
		}
		if len(cidrs) > 0 {
			return []finding{{path, anyList(cidrs), origin}}, nil
		}
	}
	return nil, nil
}

func serviceCIDRSource(ctx context.Context, client kubernetes.Interface) ([]string, string, error) {
	list, err := client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	var cidrs []string
	for _, item := range list.Items {
		cidrs = append(cidrs, item.Spec.CIDRs...)
	}
	slices.Sort(cidrs)
	return slices.Compact(cidrs), "ServiceCIDR objects", nil
}

func kubeadmSource(field string) cidrSource {
	return func(ctx context.Context, client kubernetes.Interface) ([]string, string, error) {
		config, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, "kubeadm-config", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, "", nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("read ConfigMap kube-system/kubeadm-config: %w", err)
		}
		var cluster struct {
			Networking map[string]any `json:"networking"`
		}
		if err := yaml.Unmarshal([]byte(config.Data["ClusterConfiguration"]), &cluster); err != nil {
			return nil, "", fmt.Errorf("parse ConfigMap kube-system/kubeadm-config: %w", err)
		}
		subnets, _ := cluster.Networking[field].(string)
		return splitCIDRs(subnets), "kubeadm's " + field, nil
	}
}

// staticPodSource reads a flag of a control-plane program that runs as a static pod.
func staticPodSource(component, flag string) cidrSource {
	return func(ctx context.Context, client kubernetes.Interface) ([]string, string, error) {
		pods, err := client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "component=" + component})
		if err != nil {
			return nil, "", fmt.Errorf("list pods of %s: %w", component, err)
		}
		for _, pod := range pods.Items {
			for _, container := range pod.Spec.Containers {
				for _, arg := range append(container.Command, container.Args...) {
					if value, ok := strings.CutPrefix(arg, flag+"="); ok {
						return splitCIDRs(value), component + " " + flag, nil
					}
				}
			}
		}
		return nil, "", nil
	}
}

func splitCIDRs(commaList string) []string {
	return strings.FieldsFunc(commaList, func(r rune) bool { return r == ',' || r == ' ' })
}

func anyList(items []string) []any {
	list := make([]any, len(items))
	for i, item := range items {
		list[i] = item
	}
	return list
}

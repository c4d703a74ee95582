package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/config"
)

// checkCluster compares the values with what there is in the cluster already. warn gets what may still come right.
func checkCluster(ctx context.Context, cluster *kubeCluster, values config.Config, warn func(string)) error {
	if err := checkInstallNodes(ctx, cluster, values, warn); err != nil {
		return err
	}
	return checkKubeProxy(ctx, cluster, values, warn)
}

// checkKubeProxy warns of a kube-proxy that is to be replaced: both would translate, and only one set of rules would be
// kept up to date when it goes.
func checkKubeProxy(ctx context.Context, cluster *kubeCluster, settings config.Config, warn func(string)) error {
	if settings.Services.KubeProxy != config.KubeProxyReplace {
		return nil
	}
	_, err := cluster.typed.AppsV1().DaemonSets("kube-system").Get(ctx, "kube-proxy", metav1.GetOptions{})
	switch {
	case err == nil:
		warn("kube-proxy runs in this cluster, and clustermesh replaces it: delete DaemonSet kube-system/kube-proxy once the agents are ready, or install with --set services.kubeProxy=keep")
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("look for kube-proxy: %w", err)
	}
	return nil
}

// checkInstallNodes looks whether nodes can run clustermesh, and compares the values with what they have already: pod CIDRs of a
// node can never be changed, so values that do not fit would leave it without network. warn gets what may still come right by itself.
func checkInstallNodes(ctx context.Context, cluster *kubeCluster, values config.Config, warn func(string)) error {
	nodes, err := cluster.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	var without, old []string
	for _, node := range nodes.Items {
		if len(node.Spec.PodCIDRs) == 0 {
			without = append(without, node.Name)
		}
		if err := checkNode(node, values.Cluster.PodCIDRs); err != nil {
			return err
		}
		if oldKernel(node) {
			old = append(old, node.Name+" ("+node.Status.NodeInfo.KernelVersion+")")
		}
	}
	if len(old) > 0 {
		warn(fmt.Sprintf("nodes with a kernel before Linux 5.15: %s; clustermesh is not tested there. Where the distribution has put newer parts into it, it may work; else upgrade it",
			atMost(3, old, ", ")))
	}
	if len(without) > 0 && values.IPAM.Mode == config.IPAMKubernetes {
		warn(fmt.Sprintf("nodes without pod CIDR: %s; kube-controller-manager has to give it (--allocate-node-cidrs), or set ipam.mode=cluster-pool",
			atMost(3, without, ", ")))
	}
	return nil
}

// oldKernel tells whether a node's kernel is older than what the data path is written for.
func oldKernel(node corev1.Node) bool {
	var major, minor int
	if _, err := fmt.Sscanf(node.Status.NodeInfo.KernelVersion, "%d.%d", &major, &minor); err != nil {
		return false // it has not said
	}
	return major < 5 || major == 5 && minor < 15
}

func checkNode(node corev1.Node, pool []netip.Prefix) error {
	for _, cidr := range node.Spec.PodCIDRs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return fmt.Errorf("node %s: parse pod CIDR: %w", node.Name, err)
		}
		inside := slices.ContainsFunc(pool, func(p netip.Prefix) bool {
			return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr())
		})
		if !inside {
			return fmt.Errorf("cluster.podCIDRs: %s does not contain %s, which node %s has for its pods; give all pod CIDRs of the cluster, "+
				"for example --set cluster.podCIDRs={%s}", joinPrefixes(pool), prefix, node.Name, guessPool(prefix))
		}
	}
	return nil
}

func joinPrefixes(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

// guessPool is a pool that a node's share may come from: 256 times as big, as with the usual sizes.
func guessPool(share netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(share.Addr(), max(share.Bits()-8, 8)).Masked()
}

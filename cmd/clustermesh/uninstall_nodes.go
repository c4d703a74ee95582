package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
)

// cleanupVerb is the agent's.
const cleanupVerb = "cleanup"

// cleanNodes makes every agent pod remove what its node holds of clustermesh, and waits until each says it is done.
func cleanNodes(ctx context.Context, cluster *kubeCluster, force bool, show *progress) error {
	sets := cluster.typed.AppsV1().DaemonSets(cluster.namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		set, err := sets.Get(ctx, agentName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		_, err = sets.Update(ctx, cleanupDaemonSet(set), metav1.UpdateOptions{FieldManager: fieldManager})
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("switch DaemonSet %s to cleaning: %w", agentName, err)
	}
	return waitClean(ctx, cluster, force, show)
}

func waitClean(ctx context.Context, cluster *kubeCluster, force bool, show *progress) error {
	var now cleaning
	err := show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		var err error
		if now, err = readCleaning(ctx, cluster); err != nil {
			why, err := transient("read the state of nodes", err)
			return false, why, err
		}
		return now.done(force), fmt.Sprintf("nodes: %d of %d are clean%s", len(now.clean), now.total, podTroubles(ctx, cluster)), nil
	})
	if err != nil {
		return fmt.Errorf("clean nodes: %w; nodes that are gone for good can be skipped with --force", err)
	}
	if len(now.unreachable) > 0 {
		show.step("nodes are clean, except these, which do not report: %s; once they are back, `clustermesh-agent cleanup` cleans them",
			strings.Join(now.unreachable, ", "))
		return nil
	}
	show.step("all nodes are clean")
	return nil
}

// cleaning is how far the agents' pods are with cleaning their nodes.
type cleaning struct {
	seen        bool     // the DaemonSet's controller knows the new template, so total is true
	total       int      // nodes that have an agent
	clean       []string // nodes that said so
	unreachable []string // nodes that are not heard of and have not said so
}

func (c cleaning) done(force bool) bool {
	done := len(c.clean)
	if force {
		done += len(c.unreachable)
	}
	return c.seen && done >= c.total
}

func readCleaning(ctx context.Context, cluster *kubeCluster) (cleaning, error) {
	set, err := cluster.typed.AppsV1().DaemonSets(cluster.namespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return cleaning{}, err
	}
	pods, err := cluster.typed.CoreV1().Pods(cluster.namespace).List(ctx, metav1.ListOptions{LabelSelector: componentLabel + "=" + agentComponent})
	if err != nil {
		return cleaning{}, err
	}
	nodes, err := cluster.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return cleaning{}, err
	}
	return judgeCleaning(set, pods.Items, nodes.Items), nil
}

func judgeCleaning(set *appsv1.DaemonSet, pods []corev1.Pod, nodes []corev1.Node) cleaning {
	result := cleaning{
		seen:  set.Status.ObservedGeneration >= set.Generation,
		total: int(set.Status.DesiredNumberScheduled),
	}
	for _, pod := range pods {
		cleaner := len(pod.Spec.Containers[0].Args) > 0 && pod.Spec.Containers[0].Args[0] == cleanupVerb
		if cleaner && pod.DeletionTimestamp == nil && podTrouble(&pod) == "" {
			result.clean = append(result.clean, pod.Spec.NodeName)
		}
	}
	for _, node := range nodes {
		if !nodeReports(node) && !slices.Contains(result.clean, node.Name) {
			result.unreachable = append(result.unreachable, node.Name)
		}
	}
	return result
}

// nodeReports tells whether the node's kubelet is heard of. A node that says it is not ready does report: without a CNI
// configuration, which goes first, none is ready.
func nodeReports(node corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionUnknown
	})
}

// cleanupDaemonSet is the agent's DaemonSet with its pods turned into cleaners. They see the directories above ours, so
// that ours themselves can go, and those of the mesh API server too, which may have run on the node once.
func cleanupDaemonSet(set *appsv1.DaemonSet) *appsv1.DaemonSet {
	set = set.DeepCopy()
	everywhere := intstr.FromString("100%")
	set.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
		Type:          appsv1.RollingUpdateDaemonSetStrategyType,
		RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &everywhere},
	}
	spec := &set.Spec.Template.Spec
	container := &spec.Containers[0]
	container.Args = []string{cleanupVerb, "--wait", "--config", "/etc/clustermesh/config.yaml"}
	replaced := []string{"run", "state"}
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return slices.Contains(replaced, v.Name) })
	container.VolumeMounts = slices.DeleteFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool {
		return slices.Contains(replaced, m.Name)
	})
	addHostPath(spec, "parent-run", "/run")
	addHostPath(spec, "parent-lib", "/var/lib")
	return set
}

// addHostPath mounts a directory of the node at the same path. Mounts that come and go below it must not be held back
// by the pod, hence the propagation.
func addHostPath(spec *corev1.PodSpec, name, path string) {
	if slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
		return
	}
	propagation := corev1.MountPropagationHostToContainer
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: path},
	}})
	container := &spec.Containers[0]
	container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, MountPropagation: &propagation})
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const mergePatch = types.MergePatchType

// stopAPIServer scales the mesh API server away and waits until no pod of it is left: it holds its data directory open
// and would make its secrets again.
func stopAPIServer(ctx context.Context, cluster *kubeCluster, force bool, show *progress) error {
	patch := []byte(`{"spec":{"replicas":0}}`)
	_, err := cluster.typed.AppsV1().Deployments(cluster.namespace).Patch(ctx, apiserverName, mergePatch, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("scale Deployment %s to 0: %w", apiserverName, err)
	}
	if err := waitNoPods(ctx, cluster, componentLabel+"="+apiserverComponent, force, show); err != nil {
		return err
	}
	show.step("stopped the mesh API server")
	return nil
}

// waitNoPods waits until no pod is left. The kubelet of a node that is down never confirms an end; force gives such pods up.
func waitNoPods(ctx context.Context, cluster *kubeCluster, selector string, force bool, show *progress) error {
	return show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		pods, err := cluster.typed.CoreV1().Pods(cluster.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err == nil && force {
			err = abandon(ctx, cluster, pods.Items)
		}
		if err != nil {
			why, err := transient("wait for the end of pods", err)
			return false, why, err
		}
		var names []string
		for _, pod := range pods.Items {
			names = append(names, fmt.Sprintf("%s on %s", pod.Name, pod.Spec.NodeName))
		}
		return len(names) == 0, "the end of " + strings.Join(names, ", "), nil
	})
}

// abandon deletes ending pods of nodes that do not report from the API, without hearing from their kubelets.
func abandon(ctx context.Context, cluster *kubeCluster, pods []corev1.Pod) error {
	if len(pods) == 0 {
		return nil
	}
	nodes, err := cluster.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	atOnce := int64(0)
	for _, pod := range pods {
		down := slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == pod.Spec.NodeName && !nodeReports(n) })
		if !down || pod.DeletionTimestamp == nil {
			continue
		}
		err := cluster.typed.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &atOnce})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

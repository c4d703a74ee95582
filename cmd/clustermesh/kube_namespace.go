package main

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ownedLabel marks what this program made outside the chart, and may therefore delete.
const ownedLabel = "app.kubernetes.io/managed-by"

// meshNamespace is the namespace as install makes it. Its pods are privileged, which Pod Security must allow.
func meshNamespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		ownedLabel:                           fieldManager,
		"pod-security.kubernetes.io/enforce": "privileged",
		"pod-security.kubernetes.io/audit":   "privileged",
		"pod-security.kubernetes.io/warn":    "privileged",
	}}}
}

// ensureNamespace makes the namespace if it is not there. One that an earlier uninstall is still deleting has to go first.
func ensureNamespace(ctx context.Context, cluster *kubeCluster, show *progress) (made bool, err error) {
	namespaces := cluster.typed.CoreV1().Namespaces()
	err = show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		_, err := namespaces.Create(ctx, meshNamespace(cluster.namespace), metav1.CreateOptions{FieldManager: fieldManager})
		if !apierrors.IsAlreadyExists(err) {
			made = err == nil
			return made, "", err
		}
		found, err := namespaces.Get(ctx, cluster.namespace, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return false, "", err
		}
		there := err == nil && found.DeletionTimestamp == nil
		return there, "the end of the old namespace " + cluster.namespace, nil
	})
	if err != nil {
		return false, fmt.Errorf("create namespace %s: %w", cluster.namespace, err)
	}
	return made, nil
}

// deleteNamespace deletes the namespace if install made it; one that was there before stays.
func deleteNamespace(ctx context.Context, cluster *kubeCluster) error {
	namespaces := cluster.typed.CoreV1().Namespaces()
	found, err := namespaces.Get(ctx, cluster.namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && found.Labels[ownedLabel] != fieldManager {
		return nil
	}
	if err == nil {
		err = namespaces.Delete(ctx, cluster.namespace, metav1.DeleteOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", cluster.namespace, err)
	}
	return nil
}

// waitNoNamespace waits until a namespace that is being deleted is gone.
func waitNoNamespace(ctx context.Context, cluster *kubeCluster, show *progress) error {
	return show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		found, err := cluster.typed.CoreV1().Namespaces().Get(ctx, cluster.namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && found.DeletionTimestamp == nil {
			return true, "", nil
		}
		if err != nil {
			why, err := transient("read namespace "+cluster.namespace, err)
			return false, why, err
		}
		return false, "the end of namespace " + cluster.namespace, nil
	})
}

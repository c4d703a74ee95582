package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// SetNetworkReady sets a node's condition NetworkUnavailable to False, if it is not.
func (c *Client) SetNetworkReady(ctx context.Context, node, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n, err := c.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node %s: %w", node, err)
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeNetworkUnavailable && cond.Status == corev1.ConditionFalse && cond.Reason == reason {
			return nil
		}
	}
	now := metav1.Now()
	// A strategic merge patch merges conditions by type, so nobody else's are touched.
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
	if err != nil {
		return fmt.Errorf("marshal condition: %w", err)
	}
	_, err = c.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("patch status of node %s: %w", node, err)
	}
	return nil
}

// RemoveTaint takes a taint, written key[=value]:effect, off a node if it is there.
func (c *Client) RemoveTaint(ctx context.Context, node, taint string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	n, err := c.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get node %s: %w", node, err)
	}
	keyValue, effect, _ := strings.Cut(taint, ":")
	key, _, _ := strings.Cut(keyValue, "=")
	left := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool {
		return t.Key == key && (effect == "" || string(t.Effect) == effect)
	})
	if len(left) == len(n.Spec.Taints) {
		return nil
	}
	// The version makes it fail, and be tried again, if somebody else changed the taints meanwhile.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": n.ResourceVersion},
		"spec":     map[string]any{"taints": left},
	})
	if err != nil {
		return fmt.Errorf("marshal taints: %w", err)
	}
	if _, err = c.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("remove taint %s from node %s: %w", taint, node, err)
	}
	return nil
}

// SetPodCIDRs gives a node its pod networks. Kubernetes allows that once only.
func (c *Client) SetPodCIDRs(ctx context.Context, node string, cidrs []string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs}})
	if err != nil {
		return fmt.Errorf("marshal pod CIDRs: %w", err)
	}
	if _, err = c.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("set pod CIDRs of node %s to %v: %w", node, cidrs, err)
	}
	return nil
}

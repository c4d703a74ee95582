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
)

// waitReady waits until every pod of clustermesh has the newest template and is ready.
func waitReady(ctx context.Context, cluster *kubeCluster, show *progress) error {
	err := show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		why, err := notReady(ctx, cluster)
		return err == nil && why == "", why, err
	})
	if err != nil {
		return fmt.Errorf("%w; look with `kubectl -n %s describe pods` and `kubectl -n %[2]s logs`", err, cluster.namespace)
	}
	show.step("all pods are ready")
	return nil
}

// notReady says what is missing, "" if nothing is. Errors of a single request are such a reason: API servers restart.
func notReady(ctx context.Context, cluster *kubeCluster) (string, error) {
	agents, err := cluster.typed.AppsV1().DaemonSets(cluster.namespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return transient("read DaemonSet "+agentName, err)
	}
	servers, err := cluster.typed.AppsV1().Deployments(cluster.namespace).Get(ctx, apiserverName, metav1.GetOptions{})
	if err != nil {
		return transient("read Deployment "+apiserverName, err)
	}
	var waits []string
	if !daemonSetDone(agents) {
		waits = append(waits, fmt.Sprintf("agents %d/%d", daemonSetReady(agents), agents.Status.DesiredNumberScheduled))
	}
	if !deploymentDone(servers) {
		waits = append(waits, fmt.Sprintf("mesh API servers %d/%d", servers.Status.ReadyReplicas, *servers.Spec.Replicas))
	}
	if len(waits) == 0 {
		return "", nil
	}
	return "ready pods: " + strings.Join(waits, ", ") + podTroubles(ctx, cluster), nil
}

// daemonSetReady counts pods that are of the newest template, and ready as far as the status can tell.
func daemonSetReady(set *appsv1.DaemonSet) int32 {
	if set.Status.ObservedGeneration < set.Generation {
		return 0
	}
	return min(set.Status.UpdatedNumberScheduled, set.Status.NumberReady)
}

func daemonSetDone(set *appsv1.DaemonSet) bool {
	return set.Status.ObservedGeneration >= set.Generation &&
		daemonSetReady(set) == set.Status.DesiredNumberScheduled && set.Status.NumberUnavailable == 0
}

func deploymentDone(set *appsv1.Deployment) bool {
	status := set.Status
	return status.ObservedGeneration >= set.Generation && status.UpdatedReplicas == *set.Spec.Replicas &&
		status.ReadyReplicas == *set.Spec.Replicas && status.Replicas == *set.Spec.Replicas
}

// podTroubles says why pods are not ready, each reason with the places where it holds; "" if there is nothing to say.
func podTroubles(ctx context.Context, cluster *kubeCluster) string {
	pods, err := cluster.typed.CoreV1().Pods(cluster.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=clustermesh"})
	if err != nil {
		return ""
	}
	return describeTroubles(pods.Items)
}

func describeTroubles(pods []corev1.Pod) string {
	places := map[string][]string{}
	for _, pod := range pods {
		if why := podTrouble(&pod); why != "" {
			places[why] = append(places[why], podPlace(&pod))
		}
	}
	var troubles []string
	for why, where := range places {
		slices.Sort(where)
		troubles = append(troubles, atMost(3, where, ", ")+": "+why)
	}
	if len(troubles) == 0 {
		return ""
	}
	slices.Sort(troubles)
	return " (" + atMost(3, troubles, "; ") + ")"
}

// atMost joins the first items and counts the rest: in a big cluster many nodes have the same trouble.
func atMost(most int, items []string, separator string) string {
	if len(items) > most {
		items = append(slices.Clone(items[:most]), fmt.Sprintf("and %d more", len(items)-most))
	}
	return strings.Join(items, separator)
}

func podPlace(pod *corev1.Pod) string {
	place := pod.Labels[componentLabel]
	if pod.Spec.NodeName != "" {
		place += " on " + pod.Spec.NodeName
	}
	return place
}

// podTrouble says why a pod is not ready, "" if it is.
func podTrouble(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "old one is stopping"
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return ""
		}
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			message, _, _ := strings.Cut(condition.Message, ". ") // then comes what preemption would not help
			return message
		}
	}
	for _, container := range pod.Status.ContainerStatuses {
		return containerTrouble(container)
	}
	return "kubelet has not started it"
}

func containerTrouble(status corev1.ContainerStatus) string {
	last := ""
	if ended := status.LastTerminationState.Terminated; ended != nil {
		last = fmt.Sprintf(", exit code %d: %s", ended.ExitCode, lastLine(ended.Message))
	}
	switch {
	case status.State.Waiting != nil && last != "":
		return status.State.Waiting.Reason + last
	case status.State.Waiting != nil:
		return strings.TrimSuffix(status.State.Waiting.Reason+": "+status.State.Waiting.Message, ": ")
	case status.State.Terminated != nil:
		return fmt.Sprintf("ended, exit code %d: %s", status.State.Terminated.ExitCode, lastLine(status.State.Terminated.Message))
	default:
		return "runs, not ready" + last
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// transient makes an error of one request a reason to wait. A missing object or a missing right stays an error.
func transient(what string, err error) (string, error) {
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Sprintf("the API server (%s: %v)", what, err), nil
}

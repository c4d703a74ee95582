package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// podRunner runs a command in a pod of clustermesh and gives back what it printed.
type podRunner interface {
	run(ctx context.Context, pod string, stdin []byte, command ...string) ([]byte, error)
}

// podExec runs commands as `kubectl exec` does. The images hold no shell: a command is one of our own programs.
type podExec struct{ cluster *kubeCluster }

func (e podExec) run(ctx context.Context, pod string, stdin []byte, command ...string) ([]byte, error) {
	options := &corev1.PodExecOptions{Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true}
	request := e.cluster.typed.CoreV1().RESTClient().Post().Namespace(e.cluster.namespace).
		Resource("pods").Name(pod).SubResource("exec").VersionedParams(options, scheme.ParameterCodec)
	executor, err := newExecutor(e.cluster.config, request.URL())
	if err != nil {
		return nil, fmt.Errorf("exec in pod %s: %w", pod, err)
	}
	var out, errOut bytes.Buffer
	streams := remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}
	if stdin != nil {
		streams.Stdin = io.Reader(bytes.NewReader(stdin))
	}
	if err := executor.StreamWithContext(ctx, streams); err != nil {
		return out.Bytes(), execError(pod, command, errOut.String(), err)
	}
	return out.Bytes(), nil
}

// newExecutor speaks WebSocket, as API servers do since 1.30, and falls back to SPDY where the server, or a proxy on
// the way, does not understand it.
func newExecutor(config *rest.Config, target *url.URL) (remotecommand.Executor, error) {
	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", target)
	if err != nil {
		return nil, err
	}
	websocket, err := remotecommand.NewWebSocketExecutor(config, "GET", target.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// execError prefers what the command itself said to its exit code.
func execError(pod string, command []string, said string, err error) error {
	if said = strings.TrimSpace(said); said != "" {
		return fmt.Errorf("run %s in pod %s: %s", strings.Join(command, " "), pod, strings.TrimPrefix(said, "Error: "))
	}
	return fmt.Errorf("run %s in pod %s: %w", strings.Join(command, " "), pod, err)
}

// askJSON runs a command that prints one JSON value and decodes it. Fields that this version does not know are
// skipped: the pod may be newer.
func askJSON[T any](ctx context.Context, runner podRunner, pod string, stdin []byte, command ...string) (T, error) {
	var answer T
	printed, err := runner.run(ctx, pod, stdin, command...)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(printed, &answer); err != nil {
		return answer, fmt.Errorf("read what %s in pod %s printed: %w", strings.Join(command, " "), pod, err)
	}
	return answer, nil
}

// componentPods lists the pods of one of our components that are not about to go, in the order of their names.
func componentPods(ctx context.Context, client kubernetes.Interface, namespace, component string) ([]corev1.Pod, error) {
	selector := labels.SelectorFromSet(labels.Set{"app.kubernetes.io/name": releaseName, componentLabel: component})
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s in namespace %s: %w", component, namespace, err)
	}
	var pods []corev1.Pod
	for _, pod := range list.Items {
		gone := pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if !gone {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

func podReady(pod corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

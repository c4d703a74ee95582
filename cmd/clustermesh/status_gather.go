package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

const (
	asksAtOnce = 16 // pods of one cluster
	askTimeout = 10 * time.Second
)

// answer is what one pod said of itself, or why it did not.
type answer[T any] struct {
	Pod  corev1.Pod
	Said *T
	Err  error
}

// observed is what status and disconnect see of one cluster before anything is judged.
type observed struct {
	Context, Namespace string
	Cluster            string // name in the mesh
	Err                error  // the cluster itself could not be asked; all else is empty
	Peers              []v1alpha1.Peer
	Nodes              []corev1.Node
	Servers            []answer[status.APIServer]
	Agents             []answer[status.Agent]
}

// observe asks the Kubernetes API and every pod of clustermesh.
func observe(ctx context.Context, m *member) observed {
	seen := observed{Context: m.context, Namespace: m.namespace}
	if err := seen.readObjects(ctx, m); err != nil {
		seen.Err = err
		return seen
	}
	var group errgroup.Group
	group.Go(func() (err error) {
		seen.Servers, err = askAll[status.APIServer](ctx, m, apiserverComponent)
		return err
	})
	group.Go(func() (err error) {
		seen.Agents, err = askAll[status.Agent](ctx, m, agentComponent)
		return err
	})
	seen.Err = group.Wait()
	return seen
}

func (o *observed) readObjects(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	parsed, err := meshConfig(ctx, m)
	if err != nil {
		return err
	}
	o.Cluster = parsed.Cluster.Name
	if o.Peers, err = listPeers(ctx, m); err != nil {
		return err
	}
	nodes, err := m.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: corev1.LabelOSStable + "=linux"})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	o.Nodes = nodes.Items
	return nil
}

// askAll runs a verb of a component, status if none is given, in each of its pods. A pod that does not answer is a
// result, not an error.
func askAll[T any](ctx context.Context, m *member, component string, verb ...string) ([]answer[T], error) {
	if len(verb) == 0 {
		verb = []string{"status", "-o", "json"}
	}

	listing, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	pods, err := componentPods(listing, m.typed, m.namespace, component)
	if err != nil {
		return nil, err
	}
	answers := make([]answer[T], len(pods))
	var group errgroup.Group
	group.SetLimit(asksAtOnce)
	for i, pod := range pods {
		group.Go(func() error {
			answers[i] = ask[T](ctx, m, pod, append([]string{"/clustermesh-" + component}, verb...))
			return nil
		})
	}
	return answers, group.Wait()
}

func ask[T any](ctx context.Context, m *member, pod corev1.Pod, command []string) answer[T] {
	if pod.Status.Phase != corev1.PodRunning {
		return answer[T]{Pod: pod, Err: errors.New(podTrouble(&pod))}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said, err := askJSON[T](ctx, m.pods, pod.Name, nil, command...)
	if err != nil {
		return answer[T]{Pod: pod, Err: err}
	}
	return answer[T]{Pod: pod, Said: &said}
}

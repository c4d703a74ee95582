package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/status"
)

const (
	probeTimeout  = 5 * time.Second // of one endpoint; a listening one answers in one round trip or two
	probeOverhead = 10 * time.Second
	probesAtOnce  = 8
)

// probeTarget is the mesh API that is probed: its cluster, whose name its certificate must carry, and the CA.
type probeTarget struct{ cluster, caBundle string }

// probe tries endpoints from inside a pod of the mesh API server of m, which is where connections will come from. What
// hinders the attempt itself counts as the endpoint's error.
func probe(ctx context.Context, m *member, target probeTarget, endpoints []string) []status.Probe {
	results := make([]status.Probe, len(endpoints))
	pod, err := readyAPIServer(ctx, m)
	if err != nil {
		for i, endpoint := range endpoints {
			results[i] = status.Probe{Endpoint: endpoint, Error: err.Error()}
		}
		return results
	}
	var group errgroup.Group
	group.SetLimit(probesAtOnce)
	for i, endpoint := range endpoints {
		group.Go(func() error {
			results[i] = probeOne(ctx, m, pod, target, endpoint)
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	return results
}

func probeOne(ctx context.Context, m *member, pod string, target probeTarget, endpoint string) status.Probe {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout+probeOverhead)
	defer cancel()
	result, err := askJSON[status.Probe](ctx, m.pods, pod, []byte(target.caBundle), "/clustermesh-apiserver", "probe",
		"--endpoint", endpoint, "--cluster", target.cluster, "--ca-file", "-")
	if err != nil {
		return status.Probe{Endpoint: endpoint, Error: err.Error()}
	}
	result.Endpoint = endpoint
	return result
}

// readyAPIServer is a pod of the mesh API server that can be asked.
func readyAPIServer(ctx context.Context, m *member) (string, error) {
	pods, err := componentPods(ctx, m.typed, m.namespace, apiserverComponent)
	if err != nil {
		return "", err
	}
	for _, pod := range pods {
		if podReady(pod) {
			return pod.Name, nil
		}
	}
	look := fmt.Sprintf("see `kubectl --context %s -n %s describe deployment %s` and its logs", m.context, m.namespace, apiserverName)
	if len(pods) == 0 {
		return "", remedied{fmt.Errorf("the mesh API server has no pod"), look}
	}
	return "", remedied{fmt.Errorf("the mesh API server is not ready (%s)", podTrouble(&pods[0])), look}
}

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

func steps(failed, why string, names ...string) []status.ProbeStep {
	var list []status.ProbeStep
	for _, name := range names {
		step := status.ProbeStep{Name: name, OK: name != failed}
		if step.OK {
			step.Detail = "detail of " + name
		} else {
			step.Error = why
		}
		list = append(list, step)
	}
	return list
}

func TestRenderProbes(t *testing.T) {
	peer := testPeer("east", "10.2.0.0/16")
	peer.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionConnected, Status: "False", Reason: "Unreachable", Message: "no endpoint answers"}}
	probes := []status.Probe{
		{Endpoint: "172.18.0.2:7473", Reachable: true, Steps: steps("", "", "dns", "tcp", "tls", "certificate", "authorisation", "heartbeat")},
		{Endpoint: "172.18.0.3:7473", Reachable: true, Steps: steps("authorisation", "permission denied: certificate of no known peer", "dns", "tcp", "tls", "certificate", "authorisation")},
		{Endpoint: "mesh.example.com:7473", Error: "no such host", Steps: steps("dns", "lookup mesh.example.com: no such host", "dns")},
		{Endpoint: "172.18.0.4:7473", Error: "run /clustermesh-apiserver probe in pod x: context deadline exceeded"},
	}
	testutil.Golden(t, "troubleshoot.txt", []byte(renderProbes("ctx-west", peer, probes).render(false)))
	var all []bool
	for _, p := range probes {
		all = append(all, passed(p))
	}
	if diff := cmp.Diff([]bool{true, false, false, false}, all); diff != "" {
		t.Errorf("passed (-want +got):\n%s", diff)
	}
}

func TestCandidates(t *testing.T) {
	peer := testPeer("east")
	peer.Spec.Endpoints = []string{"a:1", "b:1"}
	peer.Status.Announced = &v1alpha1.Announced{Endpoints: []string{"b:1", "c:1"}}
	if diff := cmp.Diff([]string{"a:1", "b:1", "c:1"}, candidates(peer)); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
}

// A step that the CLI gives no own advice for would leave the user alone with the error.
func TestAdviceForEveryStep(t *testing.T) {
	fallback := advice(v1alpha1.Peer{}, "")
	for _, step := range []string{status.ProbeDNS, status.ProbeTCP, status.ProbeTLS, status.ProbeCertificate, status.ProbeAuthorisation, status.ProbeHeartbeat} {
		if advice(v1alpha1.Peer{}, step) == fallback {
			t.Errorf("step %s has no advice of its own", step)
		}
	}
}

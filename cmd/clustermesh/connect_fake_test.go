package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// world is a cluster in memory: Kubernetes' API as far as connect uses it, and what our pods answer.
type world struct {
	*member
	name, ca string
	mu       sync.Mutex
	closed   map[string]string // endpoints that its pods can't reach, and why
	refuse   func(verb string, rehearsal bool) error
	writes   []string
}

func newWorld(t *testing.T, name, number string) *world {
	t.Helper()
	w := &world{name: name, ca: testCA(t, name), closed: map[string]string{}}
	ready := testPod("clustermesh-apiserver-0", name+"-n1", true)
	ready.Namespace, ready.Labels = defaultNamespace, map[string]string{"app.kubernetes.io/name": releaseName, componentLabel: apiserverComponent}
	config := fmt.Sprintf("cluster: {name: %s, podCIDRs: [10.%s.0.0/16], serviceCIDRs: [10.96.0.0/16]}\nfuture: {field: 1}\n", name, number)
	typed := fake.NewClientset(&ready,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: types.UID("uid-" + name)}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: configName, Namespace: defaultNamespace}, Data: map[string]string{"config.yaml": config}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name + "-n1"}, Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.18.0." + number}, {Type: corev1.NodeHostName, Address: name}}}})
	scheme := runtime.NewScheme()
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme, map[schema.GroupVersionResource]string{v1alpha1.Peers: "PeerList"})
	dynamic.PrependReactor("*", "peers", w.react(dynamic.Tracker()))
	w.member = &member{pods: w, kubeCluster: &kubeCluster{context: "ctx-" + name, namespace: defaultNamespace, typed: typed, dynamic: dynamic}}
	return w
}

// react does what the API server and our own one do with a Peer: merge what is applied, and connect to it.
func (w *world) react(tracker clienttesting.ObjectTracker) clienttesting.ReactionFunc {
	return func(action clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		patch, isPatch := action.(clienttesting.PatchActionImpl)
		rehearsal := isPatch && len(patch.PatchOptions.DryRun) > 0
		if w.refuse != nil {
			if err := w.refuse(action.GetVerb(), rehearsal); err != nil {
				return true, nil, err
			}
		}
		if rehearsal {
			return true, &unstructured.Unstructured{}, nil
		}
		switch action := action.(type) {
		case clienttesting.DeleteActionImpl:
			w.writes = append(w.writes, "delete "+action.Name)
		case clienttesting.PatchActionImpl:
			w.writes = append(w.writes, "apply "+action.Name)
			return w.applied(tracker, action)
		}
		return false, nil, nil
	}
}

func (w *world) applied(tracker clienttesting.ObjectTracker, action clienttesting.PatchActionImpl) (bool, runtime.Object, error) {
	var peer v1alpha1.Peer
	if err := json.Unmarshal(action.Patch, &peer); err != nil {
		return true, nil, err
	}
	peer.UID = types.UID("uid-of-" + peer.Name)
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionConnected, v1alpha1.ConditionSynced} {
		meta.SetStatusCondition(&peer.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue})
	}
	object, err := toUnstructured(&peer)
	if err != nil {
		return true, nil, err
	}
	_, err = tracker.Get(v1alpha1.Peers, "", peer.Name)
	if err == nil {
		return true, object, tracker.Update(v1alpha1.Peers, object, "")
	}
	return true, object, tracker.Create(v1alpha1.Peers, object, "")
}

// run answers as the mesh API server's own verbs do.
func (w *world) run(_ context.Context, pod string, stdin []byte, command ...string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch strings.Join(command[:2], " ") {
	case "/clustermesh-apiserver status":
		return json.Marshal(status.APIServer{Cluster: w.name, Version: "0.1.0", MinWire: 1, MaxWire: 1, CABundle: w.ca,
			Endpoints: []string{w.endpoint("1"), w.endpoint("2")}})
	case "/clustermesh-apiserver probe":
		endpoint := command[slices.Index(command, "--endpoint")+1]
		if why := w.closed[endpoint]; why != "" {
			return json.Marshal(status.Probe{Endpoint: endpoint, Error: why})
		}
		if !bytes.Contains(stdin, []byte("BEGIN CERTIFICATE")) {
			return nil, errors.New("no CA on stdin")
		}
		return json.Marshal(status.Probe{Endpoint: endpoint, Reachable: true})
	}
	return nil, fmt.Errorf("pod %s has no %q", pod, command)
}

func (w *world) endpoint(n string) string { return "mesh-" + n + "." + w.name + ".example:7473" }

// peers prints what the cluster holds.
func (w *world) peers(t *testing.T) map[string]v1alpha1.PeerSpec {
	t.Helper()
	peers, err := listPeers(t.Context(), w.member)
	if err != nil {
		t.Fatal(err)
	}
	specs := map[string]v1alpha1.PeerSpec{}
	for _, peer := range peers {
		specs[peer.Name] = peer.Spec
	}
	return specs
}

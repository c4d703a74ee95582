package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
)

// Recorder writes Events. Equal ones are counted instead of repeated.
type Recorder struct{ record.EventRecorder }

// NewRecorder returns a recorder that writes in the name of component, running
// on node, until ctx ends.
func (c *Client) NewRecorder(ctx context.Context, component, node string) Recorder {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.CoreV1().Events("")})
	return Recorder{b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: node})}
}

// OnPeer writes an event about a Peer.
func (r Recorder) OnPeer(p Peer, warning bool, reason, message string) {
	r.on(&corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Peer", Name: p.Name, UID: types.UID(p.UID)}, warning, reason, message)
}

// OnPool writes an event about a LoadBalancerPool.
func (r Recorder) OnPool(name, uid string, warning bool, reason, message string) {
	r.on(&corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "LoadBalancerPool", Name: name, UID: types.UID(uid)}, warning, reason, message)
}

// OnNode writes an event about a node. Kubernetes shows those whose UID is the node's name.
func (r Recorder) OnNode(node string, warning bool, reason, message string) {
	r.on(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)}, warning, reason, message)
}

// OnService writes an event about a Service.
func (r Recorder) OnService(k lbpool.Key, uid string, warning bool, reason, message string) {
	r.on(&corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: k.Namespace, Name: k.Name, UID: types.UID(uid)}, warning, reason, message)
}

func (r Recorder) on(o runtime.Object, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	r.Event(o, kind, reason, message)
}

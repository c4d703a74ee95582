package v1alpha1

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of all types here.
var GroupVersion = schema.GroupVersion{Group: "clustermesh.io", Version: "v1alpha1"}

// Peers and Pools are the names of the resources for clients.
var (
	Peers = GroupVersion.WithResource("peers")
	Pools = GroupVersion.WithResource("loadbalancerpools")
)

// AddToScheme makes the types known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Peer{}, &PeerList{}, &LoadBalancerPool{}, &LoadBalancerPoolList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// DeepCopyObject implements runtime.Object.
func (p *Peer) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *PeerList) DeepCopyObject() runtime.Object {
	out := &PeerList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopy())
	}
	return out
}

// DeepCopyObject implements runtime.Object.
func (p *LoadBalancerPool) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *LoadBalancerPoolList) DeepCopyObject() runtime.Object {
	out := &LoadBalancerPoolList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopy())
	}
	return out
}

// DeepCopy copies a Peer.
func (p *Peer) DeepCopy() *Peer { return deepCopy(p) }

// DeepCopy copies a pool.
func (p *LoadBalancerPool) DeepCopy() *LoadBalancerPool { return deepCopy(p) }

// deepCopy copies an object. There are few of ours and they are small, so a
// round trip through JSON will do instead of generated code.
func deepCopy[T any](p *T) *T {
	b, err := json.Marshal(p)
	if err != nil {
		panic("marshal object: " + err.Error()) // no field of ours can fail
	}
	out := new(T)
	if err := json.Unmarshal(b, out); err != nil {
		panic("unmarshal object: " + err.Error())
	}
	return out
}

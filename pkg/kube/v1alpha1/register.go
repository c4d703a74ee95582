package v1alpha1

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of all types here.
var GroupVersion = schema.GroupVersion{Group: "clustermesh.io", Version: "v1alpha1"}

// Peers is the resource's name for clients.
var Peers = GroupVersion.WithResource("peers")

// AddToScheme makes the types known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Peer{}, &PeerList{})
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

// DeepCopy copies a Peer. Peers are few and small, so a round trip through
// JSON will do instead of generated code.
func (p *Peer) DeepCopy() *Peer {
	b, err := json.Marshal(p)
	if err != nil {
		panic("marshal Peer: " + err.Error()) // no field of ours can fail
	}
	out := &Peer{}
	if err := json.Unmarshal(b, out); err != nil {
		panic("unmarshal Peer: " + err.Error())
	}
	return out
}

// Package v1alpha1 holds the Go types of the API group clustermesh.io. The
// schema that the API server enforces is the CRD in charts/clustermesh.
package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Peer is the only truth about the link to another cluster. It is cluster
// scoped and named after the remote cluster.
type Peer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              PeerSpec   `json:"spec"`
	Status            PeerStatus `json:"status,omitempty"`
}

// PeerList is a list of Peers.
type PeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Peer `json:"items"`
}

// PeerSpec says how to reach a peer and what may come from it and go to it.
type PeerSpec struct {
	// Endpoints are addresses of the peer's mesh API, host:port each; they are
	// tried in order, together with those that the peer announces itself.
	Endpoints []string  `json:"endpoints"`
	Trust     PeerTrust `json:"trust"`
	Import    Import    `json:"import"`
	Export    Export    `json:"export,omitempty"`
	// StaleAfter is the silence after which the peer's service backends are
	// last choice; default 30s. Not used yet by Services of several clusters.
	StaleAfter *metav1.Duration `json:"staleAfter,omitempty"`
	// ExpireAfter is the silence after which they are withdrawn; default 10m,
	// 0s means never. Routes and identities stay.
	ExpireAfter *metav1.Duration `json:"expireAfter,omitempty"`
}

// PeerTrust says whom to believe.
type PeerTrust struct {
	// CABundle is PEM: the CA certificates of the peer's mesh CA. The peer's
	// server and client certificates must come from one of them.
	CABundle string `json:"caBundle"`
}

// Import says what is accepted from a peer. Everything else is refused and counted.
type Import struct {
	// PodCIDRs are the ranges that the peer may announce pods in.
	PodCIDRs []string `json:"podCIDRs"`
	// NodeCIDRs are the ranges that its nodes' addresses must lie in; empty
	// means anywhere that is not ours or another peer's.
	NodeCIDRs []string `json:"nodeCIDRs,omitempty"`
	// Namespaces whose services, identities and endpoints are taken; empty means all.
	Namespaces []string `json:"namespaces,omitempty"`
	Limits     Limits   `json:"limits,omitempty"`
}

// Export says what a peer may read.
type Export struct {
	// Namespaces whose services, identities and endpoints the peer may read; empty
	// means all. What no peer may read is not published; what another peer may
	// read, this one still can.
	Namespaces []string `json:"namespaces,omitempty"`
}

// Limits bound the number of rows of each kind; 0 means the default.
type Limits struct {
	Nodes      int `json:"nodes,omitempty"`      // default 5,000
	Identities int `json:"identities,omitempty"` // default 100,000
	Endpoints  int `json:"endpoints,omitempty"`  // default 500,000
	Services   int `json:"services,omitempty"`   // default 50,000
}

// The types of conditions of a Peer.
const (
	// ConditionConnected is true while the peer's mesh API answers and its
	// heartbeat is fresh.
	ConditionConnected = "Connected"
	// ConditionSynced is true once all that the peer exports has been taken over.
	ConditionSynced = "Synced"
	// ConditionAdmitted is false while rows of the peer are refused.
	ConditionAdmitted = "Admitted"
	// ConditionAccepted is false if the spec itself can't be used, and says why.
	ConditionAccepted = "Accepted"
)

// PeerStatus is written by the leading API server.
type PeerStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
	// Endpoint is the address in use.
	Endpoint string `json:"endpoint,omitempty"`
	// Announced is what the peer says of itself in its cluster row.
	Announced *Announced `json:"announced,omitempty"`
	// LastHeartbeat is when we last saw the peer's heartbeat change, to about a minute.
	LastHeartbeat *metav1.Time `json:"lastHeartbeat,omitempty"`
	// Rows counts admitted rows by kind.
	Rows map[string]int `json:"rows,omitempty"`
	// Nodes is Rows["node"], for kubectl get.
	Nodes   int       `json:"nodes,omitempty"`
	Refused []Refused `json:"refused,omitempty"`
}

// Announced is what a peer says of itself.
type Announced struct {
	Version   string   `json:"version,omitempty"`
	PodCIDRs  []string `json:"podCIDRs,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
}

// Refused counts rows of the peer that are not admitted for one reason.
type Refused struct {
	Reason  string `json:"reason"`
	Count   int64  `json:"count"`
	Example string `json:"example,omitempty"`
	Message string `json:"message,omitempty"`
}

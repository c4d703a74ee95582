package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// LoadBalancerPool is a set of addresses that Services of type LoadBalancer get
// theirs from. It is cluster scoped.
type LoadBalancerPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              LoadBalancerPoolSpec   `json:"spec"`
	Status            LoadBalancerPoolStatus `json:"status,omitempty"`
}

// LoadBalancerPoolList is a list of pools.
type LoadBalancerPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []LoadBalancerPool `json:"items"`
}

// LoadBalancerPoolSpec says which addresses there are, and who gets them.
type LoadBalancerPoolSpec struct {
	// CIDRs are networks. Of those with four addresses or more the first is
	// left out, and of IPv4 ones the last.
	CIDRs []string `json:"cidrs,omitempty"`
	// Ranges have exactly the addresses that they name.
	Ranges []AddressRange `json:"ranges,omitempty"`
	// ServiceSelector chooses Services by their labels; nil means all.
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	// Disabled pools give out no new addresses; those in use stay.
	Disabled bool     `json:"disabled,omitempty"`
	Announce Announce `json:"announce,omitempty"`
}

// AddressRange is addresses of one family, both ends included.
type AddressRange struct {
	Start string `json:"start"`
	Stop  string `json:"stop"`
}

// Announce says which nodes answer ARP and neighbour solicitations for the
// addresses, in the nodes' own subnets.
type Announce struct {
	Enabled *bool `json:"enabled,omitempty"` // default true
	// NodeSelector chooses nodes by their labels; nil means all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// ConditionReady is true while a pool gives an address to whoever asks for one.
const ConditionReady = "Ready"

// LoadBalancerPoolStatus is written by the leading API server.
type LoadBalancerPoolStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
	// Capacity is the number of addresses that the pool has, Used of those that
	// Services have.
	Capacity FamilyCounts `json:"capacity"`
	Used     FamilyCounts `json:"used"`
}

// FamilyCounts is a number for each family.
type FamilyCounts struct {
	IPv4 int64 `json:"ipv4"`
	IPv6 int64 `json:"ipv6"`
}

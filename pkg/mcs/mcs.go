// Package mcs decides about Services of several clusters: what becomes of
// ServiceExports (KEP-1645, the Multi-Cluster Services API), which backends of
// which cluster a global Service uses, and what our cluster tells others. It is
// pure: it does no I/O and is told what time it is. Its decisions about imports
// depend on the exports alone, so all clusters that see the same ones come to the
// same. N1, N2, … are the numbers of the KEP's requirements in our notes, which
// tests cite.
package mcs

import (
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The types of imports.
const (
	ClusterSetIP = "ClusterSetIP"
	Headless     = "Headless"
)

// Labels and names of derived objects.
const (
	// LabelServiceName and LabelSourceCluster stand on derived EndpointSlices (N26).
	LabelServiceName   = "multicluster.kubernetes.io/service-name"
	LabelSourceCluster = "multicluster.kubernetes.io/source-cluster"
	// DerivedPrefix begins the names of derived Services and EndpointSlices.
	DerivedPrefix = "clusterset-"
	// Manager is the value of managed-by labels of what is ours.
	Manager = "clustermesh.io"
)

// Service is what must be known of a Service of our own cluster. Derived ones
// are not among them.
type Service struct {
	// Spec is the encoding of a wire.Export, in which the Service has filled in
	// what an export takes from it: all but creation time, labels and annotations.
	Spec         string
	ExternalName bool
	Global       Global
	Problem      string // why some of its annotations can't be used; empty: they can
}

// Export is a ServiceExport of our own cluster.
type Export struct {
	CreatedMilli uint64 // milliseconds since 1970
	// Meta is the encoding of a wire.Export that has only spec.exportedLabels and
	// spec.exportedAnnotations; empty: it has neither.
	Meta string
}

// Freshness says how far what a peer told last can be relied on (the stale-data
// contract).
type Freshness uint8

// The degrees. A peer of which nothing is said is fresh.
const (
	Fresh   Freshness = iota
	Stale             // silent for staleAfter: its backends are last choice
	Expired           // silent for expireAfter: its backends are withdrawn
)

// Peer is what must be known of a peer.
type Peer struct {
	Freshness Freshness
	// Export are the namespaces that it may read of ours, separated by spaces; empty: all.
	Export string
}

// sees tells whether the peer may read a namespace.
func (p Peer) sees(namespace string) bool {
	if p.Export == "" {
		return true
	}
	for n := range strings.FieldsSeq(p.Export) {
		if n == namespace {
			return true
		}
	}
	return false
}

// Condition is a metav1.Condition without times.
type Condition struct{ Type, Status, Reason, Message string }

// Import is a wanted ServiceImport.
type Import struct {
	// Spec is the encoding of a wire.Export: type, ports, session affinity, traffic
	// policy and distribution, families, and the labels and annotations of the object.
	Spec string
	// IPs are spec.ips, in the order of the families, separated by spaces.
	IPs string
	// Clusters are the sources, sorted, separated by spaces.
	Clusters string
	// Slices tells whether status.endpointSliceObjects is Present or Absent.
	Slices bool
	Ready  Condition
}

// Decode is the Import's spec.
func (i Import) Decode() (wire.Export, error) { return wire.DecodeExport([]byte(i.Spec)) }

// ExportStatus are the conditions of a ServiceExport of ours. The zero Condition
// stands for none.
type ExportStatus struct{ Valid, Ready, Conflict Condition }

// DerivedService is a Service without selector that gives an import its address.
// The ServiceImport owns it; its label LabelServiceName names that.
type DerivedService struct {
	Import string // name of the ServiceImport, in the same namespace
	// Spec is the encoding of a wire.Export: ports, session affinity, traffic policy,
	// families. Two families mean RequireDualStack, one SingleStack.
	Spec string
}

// DerivedSlice is an EndpointSlice with backends of one cluster. The
// ServiceImport owns it.
type DerivedSlice struct {
	Import string // name of the ServiceImport, in the same namespace
	Source string // cluster
	// Slice is the encoding of a wire.Slice; its Service is the derived one, empty
	// for headless imports.
	Slice string
}

// Labels are the labels of the object but for the managed-by label.
func (s DerivedSlice) Labels() map[string]string {
	out := map[string]string{LabelServiceName: s.Import, LabelSourceCluster: s.Source}
	if slice, err := wire.DecodeSlice([]byte(s.Slice)); err == nil && slice.Service != "" {
		out["kubernetes.io/service-name"] = slice.Service
	}
	return out
}

// DerivedKey names the Service that gives an import its address. Kubernetes does
// not let a Service change its first family, so that is part of the name.
func DerivedKey(k model.ServiceKey, family string) model.ServiceKey {
	return model.ServiceKey{Namespace: k.Namespace, Name: derivedName(k.Name, family)}
}

// IsDerived tells whether a Service is derived from the import that its label
// LabelServiceName names.
func IsDerived(name, imported string) bool {
	return imported != "" && (name == derivedName(imported, IPv4) || name == derivedName(imported, IPv6))
}

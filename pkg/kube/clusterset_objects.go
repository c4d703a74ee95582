package kube

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// managedBy marks objects that we write.
const managedBy = "app.kubernetes.io/managed-by"

// ManagedByUs selects them.
const ManagedByUs = managedBy + "=" + mcs.Manager

func objectMeta(k model.ServiceKey) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name, Labels: map[string]string{managedBy: mcs.Manager}}
}

// putImport makes an object what a row wants: the whole of it is ours (KEP-1645:
// users do not write ServiceImports). It returns whether the spec, and whether the
// status, was something else.
func putImport(o *mcsv1beta1.ServiceImport, k model.ServiceKey, row mcs.Import) (spec, status bool, err error) {
	x, err := row.Decode()
	if err != nil {
		return false, false, err
	}
	was := o.DeepCopy()
	m := objectMeta(k)
	maps.Copy(m.Labels, x.Labels)
	o.Labels, o.Annotations = m.Labels, x.Annotations
	o.Namespace, o.Name = k.Namespace, k.Name
	o.Spec = mcsv1beta1.ServiceImportSpec{
		Type: mcsv1beta1.ServiceImportType(x.Type), Ports: importPorts(x.Ports), IPs: strings.Fields(row.IPs), IPFamilies: families(x.IPFamilies),
		SessionAffinity: corev1.ServiceAffinity(x.SessionAffinity), SessionAffinityConfig: affinityConfig(x),
		InternalTrafficPolicy: internalPolicy(x), TrafficDistribution: pointer(x.TrafficDistribution),
	}
	o.Status.Clusters = nil
	for _, c := range strings.Fields(row.Clusters) {
		o.Status.Clusters = append(o.Status.Clusters, mcsv1beta1.ClusterStatus{Cluster: c})
	}
	o.Status.EndpointSliceObjects = mcsv1beta1.EndpointSliceObjectsAbsent
	if row.Slices {
		o.Status.EndpointSliceObjects = mcsv1beta1.EndpointSliceObjectsPresent
	}
	setCondition(&o.Status.Conditions, row.Ready)
	now, before := importRow(o), importRow(was)
	spec = was.UID == "" || now.Spec != before.Spec || now.IPs != before.IPs || was.Labels[managedBy] != mcs.Manager
	now.Spec, now.IPs, before.Spec, before.IPs = "", "", "", ""
	return spec, now != before, nil
}

// importRow is the row that an object of ours holds.
func importRow(o *mcsv1beta1.ServiceImport) mcs.Import {
	x := wire.Export{
		Type: string(o.Spec.Type), SessionAffinity: string(o.Spec.SessionAffinity), AffinitySeconds: affinityOf(o.Spec.SessionAffinity, o.Spec.SessionAffinityConfig),
		Labels: maps.Clone(o.Labels), Annotations: o.Annotations,
	}
	delete(x.Labels, managedBy)
	if p := o.Spec.InternalTrafficPolicy; p != nil {
		x.InternalPolicy = string(*p)
	}
	if d := o.Spec.TrafficDistribution; d != nil {
		x.TrafficDistribution = *d
	}
	for _, f := range o.Spec.IPFamilies {
		x.IPFamilies = append(x.IPFamilies, string(f))
	}
	for _, p := range o.Spec.Ports {
		x.Ports = append(x.Ports, wirePort(p.Name, p.Protocol, p.AppProtocol, p.Port))
	}
	row := mcs.Import{Spec: string(x.Encode()), IPs: strings.Join(o.Spec.IPs, " "),
		Slices: o.Status.EndpointSliceObjects == mcsv1beta1.EndpointSliceObjectsPresent, Ready: conditionOf(o.Status.Conditions, mcs.TypeReady)}
	var clusters []string
	for _, c := range o.Status.Clusters {
		clusters = append(clusters, c.Cluster)
	}
	slices.Sort(clusters)
	row.Clusters = strings.Join(clusters, " ")
	return row
}

func importPorts(list []wire.Port) []mcsv1beta1.ServicePort {
	out := []mcsv1beta1.ServicePort{}
	for _, p := range list {
		out = append(out, mcsv1beta1.ServicePort{Name: p.Name, Protocol: protocolName(p.Protocol), AppProtocol: pointer(p.AppProtocol), Port: int32(p.Port)})
	}
	return out
}

// derivedService is the object of a row.
func derivedService(k model.ServiceKey, row mcs.DerivedService, owner metav1.OwnerReference) (*corev1.Service, error) {
	x, err := wire.DecodeExport([]byte(row.Spec))
	if err != nil {
		return nil, err
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(x.IPFamilies) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: objectMeta(k), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinity(x.SessionAffinity), SessionAffinityConfig: affinityConfig(x),
		InternalTrafficPolicy: internalPolicy(x), TrafficDistribution: pointer(x.TrafficDistribution),
		IPFamilies: families(x.IPFamilies), IPFamilyPolicy: &policy,
	}}
	s.Labels[mcs.LabelServiceName] = row.Import
	s.OwnerReferences = []metav1.OwnerReference{owner}
	for _, p := range x.Ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.Name, Protocol: protocolName(p.Protocol), AppProtocol: pointer(p.AppProtocol), Port: int32(p.Port)})
	}
	return s, nil
}

// derivedServiceRow is the row that a Service of ours holds.
func derivedServiceRow(s *corev1.Service) mcs.DerivedService {
	x := serviceSpec(s)
	return mcs.DerivedService{Import: s.Labels[mcs.LabelServiceName], Spec: string(x.Encode())}
}

// derivedSlice is the object of a row.
func derivedSlice(k model.ServiceKey, row mcs.DerivedSlice, owner metav1.OwnerReference) (*discoveryv1.EndpointSlice, error) {
	x, err := wire.DecodeSlice([]byte(row.Slice))
	if err != nil {
		return nil, err
	}
	s := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name, Labels: row.Labels(), OwnerReferences: []metav1.OwnerReference{owner}},
		Endpoints:  []discoveryv1.Endpoint{}, AddressType: discoveryv1.AddressTypeIPv4}
	s.Labels[discoveryv1.LabelManagedBy] = mcs.Manager
	for _, e := range x.Endpoints {
		if e.Addr.Is6() {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, endpointOf(e))
	}
	for _, p := range x.Ports {
		protocol, name, port := protocolName(p.Protocol), p.Name, int32(p.Port)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port, AppProtocol: pointer(p.AppProtocol)})
	}
	return s, nil
}

func endpointOf(e wire.SliceEndpoint) discoveryv1.Endpoint {
	out := discoveryv1.Endpoint{Addresses: []string{e.Addr.String()}, Hostname: pointer(e.Hostname), Zone: pointer(e.Zone), NodeName: pointer(e.Node),
		Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating}}
	hints := &discoveryv1.EndpointHints{}
	for z := range strings.SplitSeq(e.ForZones, ",") {
		if z != "" {
			hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
	for n := range strings.SplitSeq(e.ForNodes, ",") {
		if n != "" {
			hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: n})
		}
	}
	if len(hints.ForZones)+len(hints.ForNodes) > 0 {
		out.Hints = hints
	}
	return out
}

// derivedSliceRow is the row that a slice of ours holds.
func derivedSliceRow(s *discoveryv1.EndpointSlice) mcs.DerivedSlice {
	x := sliceOf(s)
	x.Source = ""
	return mcs.DerivedSlice{Import: s.Labels[mcs.LabelServiceName], Source: s.Labels[mcs.LabelSourceCluster], Slice: string(x.Encode())}
}

// setCondition does not say which generation it is about: it follows from the
// objects of other clusters as well, and is written before and after the spec.
func setCondition(list *[]metav1.Condition, c mcs.Condition) (changed bool) {
	if c == (mcs.Condition{}) {
		return false
	}
	if conditionOf(*list, c.Type) == c {
		return false
	}
	next := metav1.Condition{Type: c.Type, Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message,
		LastTransitionTime: metav1.Now()}
	for i, old := range *list {
		if old.Type == c.Type {
			if old.Status == next.Status {
				next.LastTransitionTime = old.LastTransitionTime
			}
			(*list)[i] = next
			return true
		}
	}
	*list = append(*list, next)
	return true
}

func conditionOf(list []metav1.Condition, kind string) mcs.Condition {
	for _, c := range list {
		if c.Type == kind {
			return mcs.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message}
		}
	}
	return mcs.Condition{}
}

func families(list []string) []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, f := range list {
		out = append(out, corev1.IPFamily(f))
	}
	return out
}

func affinityConfig(x wire.Export) *corev1.SessionAffinityConfig {
	if x.SessionAffinity != string(corev1.ServiceAffinityClientIP) || x.AffinitySeconds == 0 {
		return nil
	}
	seconds := int32(x.AffinitySeconds)
	return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
}

func internalPolicy(x wire.Export) *corev1.ServiceInternalTrafficPolicy {
	if x.InternalPolicy == "" {
		return nil
	}
	p := corev1.ServiceInternalTrafficPolicy(x.InternalPolicy)
	return &p
}

// pointer is nil for an empty text, which optional fields of the API do not hold.
func pointer(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func protocolName(number uint8) corev1.Protocol {
	return map[uint8]corev1.Protocol{6: corev1.ProtocolTCP, 17: corev1.ProtocolUDP, 132: corev1.ProtocolSCTP}[number]
}

func dropCondition(list *[]metav1.Condition, kind string) (changed bool) {
	before := len(*list)
	*list = slices.DeleteFunc(*list, func(c metav1.Condition) bool { return c.Type == kind })
	return len(*list) != before
}

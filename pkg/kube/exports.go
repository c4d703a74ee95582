package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ExportedServiceRow is what other clusters may be told of a Service. There is
// none of those that are derived from imports.
func ExportedServiceRow(s *corev1.Service) map[model.ServiceKey]mcs.Service {
	if mcs.IsDerived(s.Name, s.Labels[mcs.LabelServiceName]) {
		return nil
	}
	spec := wire.Export{Type: mcs.ClusterSetIP, SessionAffinity: string(s.Spec.SessionAffinity), AffinitySeconds: affinitySeconds(s)}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		spec.Type = mcs.Headless
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		spec.InternalPolicy = string(*p)
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		spec.TrafficDistribution = *d
	}
	for _, f := range s.Spec.IPFamilies {
		spec.IPFamilies = append(spec.IPFamilies, string(f))
	}
	for _, p := range s.Spec.Ports {
		port := wire.Port{Name: p.Name, Protocol: protocolNumber(&p.Protocol), Port: uint16(p.Port)}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		spec.Ports = append(spec.Ports, port)
	}
	row := mcs.Service{Spec: string(spec.Encode()), ExternalName: s.Spec.Type == corev1.ServiceTypeExternalName}
	var err error
	if row.Global, err = mcs.ParseAnnotations(s.Annotations); err != nil {
		row.Problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return one(model.ServiceKey{Namespace: s.Namespace, Name: s.Name}, row)
}

// DerivedAddrsRow are the addresses that a derived Service has got.
func DerivedAddrsRow(s *corev1.Service) map[model.ServiceKey]mcs.DerivedAddrs {
	imported := s.Labels[mcs.LabelServiceName]
	if !mcs.IsDerived(s.Name, imported) || s.Spec.ClusterIP == "" {
		return nil
	}
	return one(model.ServiceKey{Namespace: s.Namespace, Name: s.Name}, mcs.DerivedAddrs{Import: imported, Addrs: strings.Join(s.Spec.ClusterIPs, " ")})
}

package kube

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// notOurs leaves out what is for another service proxy, and headless Services,
// as kube-proxy does (KEP-2447 and the well-known label of headless Services).
const notOurs = "!service.kubernetes.io/service-proxy-name,!" + corev1.IsHeadlessService

// RunServicesAndBalanced keeps table equal to the ports of the cluster's Services
// that have a virtual address, until ctx ends, and does of these Services what
// RunBalanced does.
func (c *Client) RunServicesAndBalanced(ctx context.Context, log *slog.Logger, table *state.Table[model.ServicePortKey, model.ServicePort],
	balanced *state.Table[lbpool.Key, lbpool.Service]) error {
	return follow(ctx, log, c.CoreV1().Services(metav1.NamespaceAll), metav1.ListOptions{LabelSelector: notOurs}, both[*corev1.Service]{
		&rowStore[*corev1.Service, model.ServicePortKey, model.ServicePort]{name: "services", table: table, rows: ServiceRows}, balancedStore(balanced)})
}

// RunSlices keeps table equal to the EndpointSlices of these Services until ctx ends.
func (c *Client) RunSlices(ctx context.Context, log *slog.Logger, cluster string, table *state.Table[model.SliceKey, string]) error {
	return follow(ctx, log, c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), metav1.ListOptions{LabelSelector: notOurs},
		&rowStore[*discoveryv1.EndpointSlice, model.SliceKey, string]{name: "endpointslices", table: table,
			rows: func(s *discoveryv1.EndpointSlice) map[model.SliceKey]string {
				value, ok := SliceRow(s)
				if !ok {
					return nil
				}
				return one(model.SliceKey{Cluster: cluster, Namespace: s.Namespace, Name: s.Name}, value)
			}})
}

// ServiceRows are the ports of a Service; none if it has no virtual address.
func ServiceRows(s *corev1.Service) map[model.ServicePortKey]model.ServicePort {
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	row := model.ServicePort{
		ExternalIPs:     addrList(s.Spec.ExternalIPs),
		LoadBalancerIPs: addrList(servedIngress(s.Status.LoadBalancer.Ingress)),
		SourceRanges:    sourceRanges(s),
		InternalLocal:   s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal:   s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		CreatedUnix:     s.CreationTimestamp.Unix(),
	}
	if row.ExternalLocal {
		row.HealthCheckNodePort = uint16(s.Spec.HealthCheckNodePort)
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		row.AffinitySeconds = uint32(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			row.AffinitySeconds = uint32(*c.ClientIP.TimeoutSeconds)
		}
	}
	for _, text := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			row.ClusterIPs = row.ClusterIPs.Add(a)
		}
	}
	out := make(map[model.ServicePortKey]model.ServicePort, len(s.Spec.Ports))
	for _, p := range s.Spec.Ports {
		row.Protocol, row.Port, row.NodePort = protocolNumber(&p.Protocol), uint16(p.Port), uint16(p.NodePort)
		out[model.ServicePortKey{Namespace: s.Namespace, Name: s.Name, Port: p.Name}] = row
	}
	return out
}

// servedIngress are the addresses of a load balancer whose packets arrive with
// that address still in them.
func servedIngress(list []corev1.LoadBalancerIngress) []string {
	var out []string
	for _, i := range list {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			out = append(out, i.IP)
		}
	}
	return out
}

// sourceRanges reads the field, or the annotation that came before it.
func sourceRanges(s *corev1.Service) string {
	list := s.Spec.LoadBalancerSourceRanges
	if text := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; len(list) == 0 && text != "" {
		list = strings.Split(text, ",")
	}
	var out []netip.Prefix
	for _, text := range list {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return sortedList(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}

func addrList(list []string) string {
	var out []netip.Addr
	for _, text := range list {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return sortedList(out, netip.Addr.Compare)
}

// sortedList writes a list as rows hold it.
func sortedList[T interface {
	comparable
	String() string
}](list []T, compare func(a, b T) int) string {
	slices.SortFunc(list, compare)
	texts := make([]string, 0, len(list))
	for _, v := range slices.Compact(list) {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, " ")
}

// protocolNumber is the IANA number; nil and unknown names mean TCP, as in the API.
func protocolNumber(p *corev1.Protocol) uint8 {
	if p != nil {
		switch *p {
		case corev1.ProtocolUDP:
			return 17
		case corev1.ProtocolSCTP:
			return 132
		}
	}
	return 6
}

// SliceRow encodes an EndpointSlice. There is none for slices of host names and
// of no Service.
func SliceRow(s *discoveryv1.EndpointSlice) (string, bool) {
	row := wire.Slice{Service: s.Labels[discoveryv1.LabelServiceName]}
	if row.Service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return "", false
	}
	for _, p := range s.Ports {
		if p.Port == nil { // all ports, which only means something to headless Services
			continue
		}
		port := wire.Port{Protocol: protocolNumber(p.Protocol), Port: uint16(*p.Port)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		row.Ports = append(row.Ports, port)
	}
	for _, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		if addr, err := netip.ParseAddr(e.Addresses[0]); err == nil { // all of an endpoint are the same backend
			row.Endpoints = append(row.Endpoints, sliceEndpoint(e, addr.Unmap()))
		}
	}
	slices.SortFunc(row.Endpoints, func(a, b wire.SliceEndpoint) int { return a.Addr.Compare(b.Addr) })
	row.Endpoints = slices.CompactFunc(row.Endpoints, func(a, b wire.SliceEndpoint) bool { return a.Addr == b.Addr })
	return string(row.Encode()), true
}

// sliceEndpoint reads conditions as the API defines them where they are nil.
func sliceEndpoint(e discoveryv1.Endpoint, addr netip.Addr) wire.SliceEndpoint {
	out := wire.SliceEndpoint{Addr: addr, Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	out.Serving = out.Ready
	if e.Conditions.Serving != nil {
		out.Serving = *e.Conditions.Serving
	}
	out.Terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
	for field, value := range map[*string]*string{&out.Hostname: e.Hostname, &out.Zone: e.Zone, &out.Node: e.NodeName} {
		if value != nil {
			*field = *value
		}
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ForZones += "," + z.Name
		}
		for _, n := range e.Hints.ForNodes {
			out.ForNodes += "," + n.Name
		}
		out.ForZones, out.ForNodes = hint(out.ForZones), hint(out.ForNodes)
	}
	return out
}

// hint is a list as the row holds it. One that is too long for that hints at
// nearly everybody: it is left out, which means the same.
func hint(list string) string {
	const most = 253
	if list = strings.TrimPrefix(list, ","); len(list) > most {
		return ""
	}
	return list
}

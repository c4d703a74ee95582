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
	netutils "k8s.io/utils/net"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/mcs"
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
		&rowStore[*discoveryv1.EndpointSlice, model.SliceKey, string]{name: "endpointslices", table: table, rows: sliceRows(cluster)})
}

func sliceRows(cluster string) func(*discoveryv1.EndpointSlice) map[model.SliceKey]string {
	return func(s *discoveryv1.EndpointSlice) map[model.SliceKey]string {
		value, ok := SliceRow(s)
		if !ok {
			return nil
		}
		return one(model.SliceKey{Cluster: cluster, Namespace: s.Namespace, Name: s.Name}, value)
	}
}

// longestAffinity is the most seconds that the API allows, a day.
const longestAffinity = 86400

// ServiceRows are the ports of a Service; none if it has no virtual address.
func ServiceRows(s *corev1.Service) map[model.ServicePortKey]model.ServicePort {
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.ClusterIP == "" {
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
	row.AffinitySeconds = affinitySeconds(s)
	for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) { // the one is the first of the others
		if a, ok := parseAddr(text); ok {
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

// affinitySeconds is the timeout of session affinity ClientIP; 0: there is none.
func affinitySeconds(s *corev1.Service) uint32 {
	return affinityOf(s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig)
}

func affinityOf(kind corev1.ServiceAffinity, c *corev1.SessionAffinityConfig) uint32 {
	if kind != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return uint32(max(0, min(*c.ClientIP.TimeoutSeconds, longestAffinity)))
	}
	return uint32(corev1.DefaultClientIPServiceAffinitySeconds)
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

// sourceRanges reads the field, or the annotation that came before it. What is no
// prefix stays in the list as it is: left out, it could leave a list that lets
// everybody in.
func sourceRanges(s *corev1.Service) string {
	list := s.Spec.LoadBalancerSourceRanges
	if text := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; len(list) == 0 && text != "" {
		list = strings.Split(text, ",")
	}
	var out []netip.Prefix
	var bad []string
	for _, text := range list {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if p, ok := parsePrefix(text); ok {
			out = append(out, p)
		} else {
			bad = append(bad, strings.Join(strings.Fields(text), "_"))
		}
	}
	good := sortedList(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	slices.Sort(bad)
	return strings.Join(append(strings.Fields(good), slices.Compact(bad)...), " ")
}

// parseAddr reads an address as the API does: old objects may have leading zeros.
func parseAddr(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}

// parsePrefix is parseAddr for prefixes.
func parsePrefix(text string) (netip.Prefix, bool) {
	_, n, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	bits, _ := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	return netip.PrefixFrom(a, bits), ok
}

func addrList(list []string) string {
	var out []netip.Addr
	for _, text := range list {
		if a, ok := parseAddr(text); ok {
			out = append(out, a)
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
	if s.Labels[discoveryv1.LabelServiceName] == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return "", false
	}
	row := sliceOf(s)
	return string(row.Encode()), true
}

func sliceOf(s *discoveryv1.EndpointSlice) wire.Slice {
	row := wire.Slice{Service: s.Labels[discoveryv1.LabelServiceName], Source: s.Labels[mcs.LabelSourceCluster]}
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
		addr, ok := parseAddr(e.Addresses[0]) // all of an endpoint are the same backend
		if ok && addr.Is6() == (s.AddressType == discoveryv1.AddressTypeIPv6) {
			row.Endpoints = append(row.Endpoints, sliceEndpoint(e, addr))
		}
	}
	slices.SortFunc(row.Endpoints, wire.SliceEndpoint.Compare)
	row.Endpoints = slices.CompactFunc(row.Endpoints, func(a, b wire.SliceEndpoint) bool { return a.Addr == b.Addr })
	return row
}

// sliceEndpoint reads conditions as the API defines them where they are nil.
func sliceEndpoint(e discoveryv1.Endpoint, addr netip.Addr) wire.SliceEndpoint {
	out := wire.SliceEndpoint{Addr: addr, Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	out.Serving = e.Conditions.Serving == nil || *e.Conditions.Serving
	out.Terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
	out.Hostname, out.Node, out.Zone = text(e.Hostname, 63), text(e.NodeName, 253), text(e.Zone, 63)
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ForZones += "," + z.Name
		}
		for _, n := range e.Hints.ForNodes {
			out.ForNodes += "," + n.Name
		}
		out.ForZones, out.ForNodes = strings.TrimPrefix(out.ForZones, ","), strings.TrimPrefix(out.ForNodes, ",")
	}
	return out
}

// text is empty for what can't be a name: nothing checks the zone of an endpoint,
// and a row that can't be read would take all endpoints of the slice with it.
func text(value *string, most int) string {
	if value == nil || len(*value) > most || strings.ContainsFunc(*value, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return ""
	}
	return *value
}

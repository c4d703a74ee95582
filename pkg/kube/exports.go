package kube

import (
	"context"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ExportedServiceRow is what other clusters may be told of a Service. There is
// none of those that are derived from imports.
func ExportedServiceRow(s *corev1.Service) map[model.ServiceKey]mcs.Service {
	if mcs.IsDerived(s.Name, s.Labels[mcs.LabelServiceName]) {
		return nil
	}
	spec := serviceSpec(s)
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

// serviceSpec is what an export takes from a Service (N8).
func serviceSpec(s *corev1.Service) wire.Export {
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
		spec.Ports = append(spec.Ports, wirePort(p.Name, p.Protocol, p.AppProtocol, p.Port))
	}
	return spec
}

func wirePort(name string, protocol corev1.Protocol, app *string, number int32) wire.Port {
	p := wire.Port{Name: name, Protocol: protocolNumber(&protocol), Port: uint16(number)}
	if app != nil {
		p.AppProtocol = *app
	}
	return p
}

// RunServiceExports keeps table equal to the cluster's ServiceExports until ctx
// ends; one that is being deleted counts as gone (N9).
func (s *ClusterSet) RunServiceExports(ctx context.Context, log *slog.Logger, table *state.Table[model.ServiceKey, mcs.Export]) error {
	table.Expect(Source)
	err := s.Wait(ctx, log, func() { table.Replace(Source, map[model.ServiceKey]mcs.Export{}) })
	if err != nil {
		return err
	}
	return follow(ctx, log, s.exports(metav1.NamespaceAll), metav1.ListOptions{}, &rowStore[*mcsv1beta1.ServiceExport, model.ServiceKey, mcs.Export]{
		name: "serviceexports", table: table, rows: ExportRow})
}

// Wait waits until the API server knows the MCS API; absent is called once if it
// says that it does not.
func (s *ClusterSet) Wait(ctx context.Context, log *slog.Logger, absent func()) error {
	for said := false; ; {
		served, err := s.client.serves(ctx, mcsv1beta1.SchemeGroupVersion, mcsv1beta1.ServiceExportPluralName)
		if served {
			return nil
		}
		if err == nil && !said {
			said = true
			log.Info("no ServiceExports: this cluster does not know the Multi-Cluster Services API", "group", mcsv1beta1.GroupVersion)
			absent()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// ExportRow is the row of a ServiceExport.
func ExportRow(x *mcsv1beta1.ServiceExport) map[model.ServiceKey]mcs.Export {
	if x.DeletionTimestamp != nil {
		return nil
	}
	row := mcs.Export{CreatedMilli: uint64(x.CreationTimestamp.UnixMilli())}
	if len(x.Spec.ExportedLabels)+len(x.Spec.ExportedAnnotations) > 0 {
		row.Meta = string(wire.Export{Labels: x.Spec.ExportedLabels, Annotations: x.Spec.ExportedAnnotations}.Encode())
	}
	return one(model.ServiceKey{Namespace: x.Namespace, Name: x.Name}, row)
}

// RunServicesForMesh keeps tables equal to what the mesh needs to know of the
// cluster's Services until ctx ends: those of others for service proxies included.
func (c *Client) RunServicesForMesh(ctx context.Context, log *slog.Logger, table *state.Table[model.ServiceKey, mcs.Service],
	derived *state.Table[model.ServiceKey, mcs.DerivedAddrs], balanced *state.Table[lbpool.Key, lbpool.Service]) error {
	return follow(ctx, log, c.CoreV1().Services(metav1.NamespaceAll), metav1.ListOptions{}, both[*corev1.Service]{
		both[*corev1.Service]{&rowStore[*corev1.Service, model.ServiceKey, mcs.Service]{name: "services", table: table, rows: ExportedServiceRow},
			&rowStore[*corev1.Service, model.ServiceKey, mcs.DerivedAddrs]{name: "services", table: derived, rows: DerivedAddrsRow}},
		balancedStore(balanced)})
}

// RunSlicesForMesh keeps table equal to the EndpointSlices of the cluster's own
// Services until ctx ends: not those that are derived from imports.
func (c *Client) RunSlicesForMesh(ctx context.Context, log *slog.Logger, cluster string, table *state.Table[model.SliceKey, string]) error {
	return follow(ctx, log, c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), metav1.ListOptions{LabelSelector: "!" + mcs.LabelServiceName},
		&rowStore[*discoveryv1.EndpointSlice, model.SliceKey, string]{name: "endpointslices", table: table, rows: sliceRows(cluster)})
}

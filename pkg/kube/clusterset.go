package kube

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/gentype"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// importClient reads ServiceImports.
type importClient = gentype.ClientWithList[*mcsv1beta1.ServiceImport, *mcsv1beta1.ServiceImportList]

// RunServiceImports keeps table equal to the cluster's ServiceImports until ctx
// ends. It waits for a version of the resource to be served, and prefers
// v1beta1; what it reads of v1alpha1 is the same.
func (c *Client) RunServiceImports(ctx context.Context, log *slog.Logger, table *state.Table[model.ServiceKey, model.ServiceImport]) error {
	table.Expect(Source)
	from, err := c.serviceImports(ctx, log)
	if err != nil {
		return err
	}
	return follow(ctx, log, from, metav1.ListOptions{}, &rowStore[*mcsv1beta1.ServiceImport, model.ServiceKey, model.ServiceImport]{
		name: "serviceimports", table: table,
		rows: func(s *mcsv1beta1.ServiceImport) map[model.ServiceKey]model.ServiceImport {
			return one(model.ServiceKey{Namespace: s.Namespace, Name: s.Name}, ImportRow(s))
		}})
}

// serviceImports waits until ServiceImports can be read.
func (c *Client) serviceImports(ctx context.Context, log *slog.Logger) (*importClient, error) {
	for said := false; ; said = true {
		version, err := c.importVersion(ctx)
		if err == nil {
			return c.newImportClient(version)
		}
		if !said {
			log.Warn("ServiceImports can't be read yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// importVersion is the version of ServiceImport to read.
func (c *Client) importVersion(ctx context.Context) (schema.GroupVersion, error) {
	for _, version := range []string{"v1beta1", "v1alpha1"} {
		gv := schema.GroupVersion{Group: mcsv1beta1.GroupName, Version: version}
		if served, err := c.serves(ctx, gv, mcsv1beta1.ServiceImportPluralName); served || err != nil {
			return gv, err
		}
	}
	return schema.GroupVersion{}, fmt.Errorf("no version of serviceimports.%s is served: install the custom resource definitions of the MCS API", mcsv1beta1.GroupName)
}

// serves tells whether a resource can be read and written.
func (c *Client) serves(ctx context.Context, gv schema.GroupVersion, resource string) (bool, error) {
	var list metav1.APIResourceList
	err := c.Discovery().RESTClient().Get().AbsPath("/apis", gv.Group, gv.Version).Do(ctx).Into(&list)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the resources of %v: %w", gv, err)
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource }), nil
}

func (c *Client) newImportClient(version schema.GroupVersion) (*importClient, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(version, &mcsv1beta1.ServiceImport{}, &mcsv1beta1.ServiceImportList{})
	metav1.AddToGroupVersion(scheme, version)
	rest, codec, err := newRESTClient(c.Config, version, scheme)
	if err != nil {
		return nil, err
	}
	return gentype.NewClientWithList("serviceimports", rest, codec, "",
		func() *mcsv1beta1.ServiceImport { return &mcsv1beta1.ServiceImport{} },
		func() *mcsv1beta1.ServiceImportList { return &mcsv1beta1.ServiceImportList{} }), nil
}

// ImportRow is what DNS needs to know of a ServiceImport. Addresses that are
// none are left out.
func ImportRow(s *mcsv1beta1.ServiceImport) model.ServiceImport {
	row := model.ServiceImport{Headless: s.Spec.Type == mcsv1beta1.Headless}
	if !row.Headless {
		for _, text := range s.Spec.IPs {
			if a, err := netip.ParseAddr(text); err == nil {
				row.IPs = row.IPs.Add(a)
			}
		}
	}
	var ports []string
	for _, p := range s.Spec.Ports {
		ports = append(ports, portText(p.Name, p.Protocol, p.Port))
	}
	row.Ports = strings.Join(ports, " ")
	return row
}

// portText is a port as rows hold it.
func portText(name string, protocol corev1.Protocol, number int32) string {
	return name + "/" + strings.ToLower(string(cmp.Or(protocol, corev1.ProtocolTCP))) + "/" + strconv.Itoa(int(number))
}

// RunImportSlices keeps table equal to the EndpointSlices behind ServiceImports
// until ctx ends.
func (c *Client) RunImportSlices(ctx context.Context, log *slog.Logger, table *state.Table[model.ServiceKey, model.ImportSlice]) error {
	return follow(ctx, log, c.DiscoveryV1().EndpointSlices(metav1.NamespaceAll), metav1.ListOptions{LabelSelector: mcs.LabelServiceName},
		&rowStore[*discoveryv1.EndpointSlice, model.ServiceKey, model.ImportSlice]{name: "endpointslices", table: table,
			rows: func(s *discoveryv1.EndpointSlice) map[model.ServiceKey]model.ImportSlice {
				return one(model.ServiceKey{Namespace: s.Namespace, Name: s.Name}, ImportSliceRow(s))
			}})
}

// ImportSliceRow is what DNS needs to know of an EndpointSlice: its ready
// endpoints. A condition that is not set counts as ready.
func ImportSliceRow(s *discoveryv1.EndpointSlice) model.ImportSlice {
	row := model.ImportSlice{Service: s.Labels[mcs.LabelServiceName], Cluster: s.Labels[mcs.LabelSourceCluster]}
	var endpoints, ports []string
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		for _, text := range e.Addresses {
			if addr := canonical(text); addr != "" && e.Hostname != nil && *e.Hostname != "" {
				endpoints = append(endpoints, addr+"="+*e.Hostname)
			} else if addr != "" {
				endpoints = append(endpoints, addr)
			}
		}
	}
	for _, p := range s.Ports {
		name, protocol, number := "", corev1.ProtocolTCP, int32(0)
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if p.Port != nil {
			number = *p.Port
		}
		ports = append(ports, portText(name, protocol, number))
	}
	slices.Sort(endpoints)
	row.Endpoints, row.Ports = strings.Join(endpoints, " "), strings.Join(ports, " ")
	if t, err := time.Parse(time.RFC3339Nano, s.Annotations[corev1.EndpointsLastChangeTriggerTime]); err == nil {
		row.ChangedUnixMilli = t.UnixMilli()
	}
	return row
}

// RunNamespaces keeps table equal to the names of the cluster's namespaces until
// ctx ends.
func (c *Client) RunNamespaces(ctx context.Context, log *slog.Logger, table *state.Table[string, model.Namespace]) error {
	return follow(ctx, log, c.CoreV1().Namespaces(), metav1.ListOptions{}, &rowStore[*corev1.Namespace, string, model.Namespace]{
		name: "namespaces", table: table,
		rows: func(n *corev1.Namespace) map[string]model.Namespace {
			if n.DeletionTimestamp != nil {
				return nil // nothing can be made in it any more
			}
			return one(n.Name, model.Namespace{})
		}})
}

// RunClusterIPs keeps table equal to the virtual addresses of one Service in our
// namespace until ctx ends.
func (c *Client) RunClusterIPs(ctx context.Context, log *slog.Logger, service string, table *state.Table[string, model.Addrs]) error {
	selector := metav1.ListOptions{FieldSelector: "metadata.name=" + service}
	return follow(ctx, log, c.CoreV1().Services(c.Namespace), selector, &rowStore[*corev1.Service, string, model.Addrs]{
		name: "service", table: table,
		rows: func(s *corev1.Service) map[string]model.Addrs {
			var addrs model.Addrs
			for _, text := range s.Spec.ClusterIPs {
				if a, err := netip.ParseAddr(text); err == nil { // of headless Services it is None
					addrs = addrs.Add(a)
				}
			}
			return one(s.Name, addrs)
		}})
}

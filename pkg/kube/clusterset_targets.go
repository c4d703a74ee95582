package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
)

// ServiceImports is the resource.
var ServiceImports = schema.GroupVersionResource{Group: mcsv1beta1.GroupName, Version: "v1beta1", Resource: mcsv1beta1.ServiceImportPluralName}

// ClusterSet writes what the MCS API asks of a controller: ServiceImports, what is
// derived from them, and the conditions of ServiceExports. Its parts are targets
// of loops (reconcile.Target); those of what is derived need the imports' loop.
type ClusterSet struct {
	client *Client
	rest   *rest.RESTClient
	codec  runtime.ParameterCodec

	mu     sync.Mutex
	owners map[model.ServiceKey]types.UID // guarded by mu: of ServiceImports
}

// NewClusterSet makes the client. It does not connect yet. Its requests have a rate
// limit of their own: peers cause them, and must not hold up the leader's Lease.
func (c *Client) NewClusterSet() (*ClusterSet, error) {
	c, err := New(c.Config, "clustermesh-clusterset", c.Namespace)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := mcsv1beta1.Install(scheme); err != nil {
		return nil, fmt.Errorf("register %v: %w", mcsv1beta1.GroupVersion, err)
	}
	r, codec, err := newRESTClient(c.Config, mcsv1beta1.SchemeGroupVersion, scheme)
	return &ClusterSet{client: c, rest: r, codec: codec, owners: map[model.ServiceKey]types.UID{}}, err
}

func (s *ClusterSet) imports(namespace string) *gentype.ClientWithList[*mcsv1beta1.ServiceImport, *mcsv1beta1.ServiceImportList] {
	return gentype.NewClientWithList(mcsv1beta1.ServiceImportPluralName, s.rest, s.codec, namespace,
		func() *mcsv1beta1.ServiceImport { return &mcsv1beta1.ServiceImport{} },
		func() *mcsv1beta1.ServiceImportList { return &mcsv1beta1.ServiceImportList{} })
}

func (s *ClusterSet) exports(namespace string) *gentype.ClientWithList[*mcsv1beta1.ServiceExport, *mcsv1beta1.ServiceExportList] {
	return gentype.NewClientWithList(mcsv1beta1.ServiceExportPluralName, s.rest, s.codec, namespace,
		func() *mcsv1beta1.ServiceExport { return &mcsv1beta1.ServiceExport{} },
		func() *mcsv1beta1.ServiceExportList { return &mcsv1beta1.ServiceExportList{} })
}

func (s *ClusterSet) own(k model.ServiceKey, uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owners[k] = uid
}

func (s *ClusterSet) disown(k model.ServiceKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owners, k)
}

// owned tells whether the owner of a derived object is the ServiceImport that there
// is now. If it is one of before, Kubernetes is about to delete the object.
func (s *ClusterSet) owned(o metav1.Object, imported string) bool {
	owner, err := s.owner(o.GetNamespace(), imported)
	return err == nil && slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == owner.UID })
}

// owner refers to the ServiceImport of a derived object.
func (s *ClusterSet) owner(namespace, name string) (metav1.OwnerReference, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	uid, ok := s.owners[model.ServiceKey{Namespace: namespace, Name: name}]
	if !ok {
		return metav1.OwnerReference{}, fmt.Errorf("ServiceImport %s/%s is not there yet", namespace, name)
	}
	return metav1.OwnerReference{APIVersion: mcsv1beta1.GroupVersion.String(), Kind: mcsv1beta1.ServiceImportKindName, Name: name, UID: uid}, nil
}

// ownerWait is how long something derived waits for its import, which is wanted at
// the same time and written by another loop.
const ownerWait = 2 * time.Second

func (s *ClusterSet) awaitOwner(ctx context.Context, namespace, name string) (owner metav1.OwnerReference, err error) {
	for until := time.Now().Add(ownerWait); ; {
		if owner, err = s.owner(namespace, name); err == nil || time.Now().After(until) {
			return owner, err
		}
		select {
		case <-ctx.Done():
			return owner, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Imports is the target of ServiceImports.
func (s *ClusterSet) Imports() ImportTarget { return ImportTarget{s} }

// ImportTarget is a reconcile.Target.
type ImportTarget struct{ s *ClusterSet }

// List implements reconcile.Target.
func (t ImportTarget) List(ctx context.Context) (map[model.ServiceKey]mcs.Import, error) {
	out, owners := map[model.ServiceKey]mcs.Import{}, map[model.ServiceKey]types.UID{}
	err := eachPage(ctx, "ServiceImports", ManagedByUs, t.s.imports(metav1.NamespaceAll).List, func(l *mcsv1beta1.ServiceImportList) {
		for i := range l.Items {
			o := &l.Items[i]
			k := model.ServiceKey{Namespace: o.Namespace, Name: o.Name}
			out[k], owners[k] = importRow(o), o.UID
		}
	})
	if err == nil {
		t.s.mu.Lock()
		t.s.owners = owners // without those that others have deleted
		t.s.mu.Unlock()
	}
	return out, err
}

// Apply implements reconcile.Target.
func (t ImportTarget) Apply(ctx context.Context, set map[model.ServiceKey]mcs.Import, del []model.ServiceKey) map[model.ServiceKey]error {
	return apply(ctx, set, del, t.put, func(ctx context.Context, k model.ServiceKey) error {
		t.s.disown(k) // who came to own it now would be deleted with it
		return t.s.imports(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{})
	})
}

func (t ImportTarget) put(ctx context.Context, k model.ServiceKey, row mcs.Import) error {
	client := t.s.imports(k.Namespace)
	o, err := client.Get(ctx, k.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		o, err = &mcsv1beta1.ServiceImport{}, nil
	}
	if err != nil {
		return err
	}
	spec, status, err := putImport(o, k, row)
	if err != nil {
		return err
	}
	wanted := o.Status
	switch {
	case o.UID == "":
		o, err = client.Create(ctx, o, metav1.CreateOptions{})
		status = true // which is not created with it
	case spec:
		o, err = client.Update(ctx, o, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	t.s.own(k, o.UID)
	if !status {
		return nil
	}
	o.Status = wanted
	_, err = client.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// ExportStatuses is the target of the conditions of ServiceExports.
func (s *ClusterSet) ExportStatuses() ExportStatusTarget { return ExportStatusTarget{s} }

// ExportStatusTarget is a reconcile.Target.
type ExportStatusTarget struct{ s *ClusterSet }

// List implements reconcile.Target.
func (t ExportStatusTarget) List(ctx context.Context) (map[model.ServiceKey]mcs.ExportStatus, error) {
	out := map[model.ServiceKey]mcs.ExportStatus{}
	return out, eachPage(ctx, "ServiceExports", "", t.s.exports(metav1.NamespaceAll).List, func(l *mcsv1beta1.ServiceExportList) {
		for i := range l.Items {
			c := l.Items[i].Status.Conditions
			row := mcs.ExportStatus{Valid: conditionOf(c, mcs.TypeValid), Ready: conditionOf(c, mcs.TypeReady), Conflict: conditionOf(c, mcs.TypeConflict)}
			if row != (mcs.ExportStatus{}) {
				out[model.ServiceKey{Namespace: l.Items[i].Namespace, Name: l.Items[i].Name}] = row
			}
		}
	})
}

// Apply implements reconcile.Target. Conditions that nobody wants are those of an
// export that is gone, and have gone with it.
func (t ExportStatusTarget) Apply(ctx context.Context, set map[model.ServiceKey]mcs.ExportStatus, del []model.ServiceKey) map[model.ServiceKey]error {
	return apply(ctx, set, del, t.put, func(context.Context, model.ServiceKey) error { return nil })
}

func (t ExportStatusTarget) put(ctx context.Context, k model.ServiceKey, row mcs.ExportStatus) error {
	client := t.s.exports(k.Namespace)
	o, err := client.Get(ctx, k.Name, metav1.GetOptions{})
	if err != nil {
		return notFoundIsFine(err)
	}
	changed := false
	for _, c := range []mcs.Condition{row.Valid, row.Ready, row.Conflict} {
		changed = setCondition(&o.Status.Conditions, c) || changed
	}
	if row.Conflict == (mcs.Condition{}) {
		changed = dropCondition(&o.Status.Conditions, mcs.TypeConflict) || changed
	}
	if !changed {
		return nil
	}
	_, err = client.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return notFoundIsFine(err)
}

// DerivedServices is the target of the Services that give imports their addresses.
func (s *ClusterSet) DerivedServices() DerivedServiceTarget { return DerivedServiceTarget{s} }

// DerivedServiceTarget is a reconcile.Target.
type DerivedServiceTarget struct{ s *ClusterSet }

// List implements reconcile.Target.
func (t DerivedServiceTarget) List(ctx context.Context) (map[model.ServiceKey]mcs.DerivedService, error) {
	out := map[model.ServiceKey]mcs.DerivedService{}
	return out, eachPage(ctx, "Services", ManagedByUs, t.s.client.CoreV1().Services(metav1.NamespaceAll).List, func(l *corev1.ServiceList) {
		for i := range l.Items {
			if o := &l.Items[i]; mcs.IsDerived(o.Name, o.Labels[mcs.LabelServiceName]) {
				row := derivedServiceRow(o)
				if !t.s.owned(o, row.Import) {
					row.Import = "" // it is not as wanted
				}
				out[model.ServiceKey{Namespace: o.Namespace, Name: o.Name}] = row
			}
		}
	})
}

// Apply implements reconcile.Target.
func (t DerivedServiceTarget) Apply(ctx context.Context, set map[model.ServiceKey]mcs.DerivedService, del []model.ServiceKey) map[model.ServiceKey]error {
	return apply(ctx, set, del, func(ctx context.Context, k model.ServiceKey, row mcs.DerivedService) error {
		owner, err := t.s.awaitOwner(ctx, k.Namespace, row.Import)
		if err != nil {
			return err
		}
		o, err := derivedService(k, row, owner)
		if err != nil {
			return err
		}
		return serverSide(ctx, k, o, t.s.client.CoreV1().Services(k.Namespace).Patch)
	}, func(ctx context.Context, k model.ServiceKey) error {
		return t.s.client.CoreV1().Services(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{})
	})
}

// DerivedSlices is the target of the EndpointSlices of imports.
func (s *ClusterSet) DerivedSlices() DerivedSliceTarget { return DerivedSliceTarget{s} }

// DerivedSliceTarget is a reconcile.Target.
type DerivedSliceTarget struct{ s *ClusterSet }

// List implements reconcile.Target.
func (t DerivedSliceTarget) List(ctx context.Context) (map[model.ServiceKey]mcs.DerivedSlice, error) {
	out := map[model.ServiceKey]mcs.DerivedSlice{}
	selector := discoveryv1.LabelManagedBy + "=" + mcs.Manager
	return out, eachPage(ctx, "EndpointSlices", selector, t.s.client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll).List, func(l *discoveryv1.EndpointSliceList) {
		for i := range l.Items {
			o := &l.Items[i]
			row := derivedSliceRow(o)
			if !t.s.owned(o, row.Import) {
				row.Import = "" // it is not as wanted
			}
			out[model.ServiceKey{Namespace: o.Namespace, Name: o.Name}] = row
		}
	})
}

// Apply implements reconcile.Target.
func (t DerivedSliceTarget) Apply(ctx context.Context, set map[model.ServiceKey]mcs.DerivedSlice, del []model.ServiceKey) map[model.ServiceKey]error {
	return apply(ctx, set, del, func(ctx context.Context, k model.ServiceKey, row mcs.DerivedSlice) error {
		owner, err := t.s.awaitOwner(ctx, k.Namespace, row.Import)
		if err != nil {
			return err
		}
		o, err := derivedSlice(k, row, owner)
		if err != nil {
			return err
		}
		return serverSide(ctx, k, o, t.s.client.DiscoveryV1().EndpointSlices(k.Namespace).Patch)
	}, func(ctx context.Context, k model.ServiceKey) error {
		return t.s.client.DiscoveryV1().EndpointSlices(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{})
	})
}

// serverSide makes the fields that o has ours (server-side apply).
func serverSide[O any](ctx context.Context, k model.ServiceKey, o any, patch func(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (O, error)) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	force := true
	_, err = patch(ctx, k.Name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: mcs.Manager, Force: &force})
	return err
}

// writers is how many objects are written at a time.
const writers = 8

// apply sets and deletes objects. One that is gone already is deleted.
func apply[V any](ctx context.Context, set map[model.ServiceKey]V, del []model.ServiceKey, put func(context.Context, model.ServiceKey, V) error,
	remove func(context.Context, model.ServiceKey) error) map[model.ServiceKey]error {
	var mu sync.Mutex
	failed := map[model.ServiceKey]error{}
	var g errgroup.Group
	g.SetLimit(writers)
	one := func(k model.ServiceKey, verb string, do func(context.Context) error) {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			if err := do(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[k] = fmt.Errorf("%s %v: %w", verb, k, err)
			}
			return nil
		})
	}
	for k, v := range set {
		one(k, "write", func(ctx context.Context) error { return put(ctx, k, v) })
	}
	for _, k := range del {
		one(k, "delete", func(ctx context.Context) error { return notFoundIsFine(remove(ctx, k)) })
	}
	_ = g.Wait() // failed says it
	return failed
}

// eachPage reads all objects that a selector chooses, page by page.
func eachPage[L metav1.ListInterface](ctx context.Context, what, selector string, list func(context.Context, metav1.ListOptions) (L, error), do func(L)) error {
	opts := metav1.ListOptions{LabelSelector: selector, Limit: 500}
	for {
		page, err := list(ctx, opts)
		if err != nil {
			return fmt.Errorf("list %s: %w", what, err)
		}
		do(page)
		if opts.Continue = page.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

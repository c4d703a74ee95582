package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// rehearseManifests lets the API server judge all manifests without keeping any: Helm applies one after the other, and the last
// one being refused would leave a half-applied upgrade.
func rehearseManifests(ctx context.Context, cluster *kubeCluster, manifests string) error {
	discovered, err := discovery.NewDiscoveryClientForConfig(cluster.config)
	if err != nil {
		return fmt.Errorf("make discovery client of context %q: %w", cluster.context, err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovered))
	var problems []error
	for _, document := range splitManifests(manifests) {
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
			return fmt.Errorf("parse rendered manifest: %w", err)
		}
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return fmt.Errorf("find resource of %s %s: %w", kind.Kind, object.GetName(), err)
		}
		var client dynamic.ResourceInterface = cluster.dynamic.Resource(mapping.Resource)
		if object.GetNamespace() != "" {
			client = cluster.dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		problems = append(problems, rehearseObject(ctx, client, object))
	}
	return errors.Join(problems...)
}

func rehearseObject(ctx context.Context, client dynamic.ResourceInterface, object *unstructured.Unstructured) error {
	encoded, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	force := true // as upgrade does
	options := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}, FieldManager: fieldManager, Force: &force}
	if _, err := client.Patch(ctx, object.GetName(), types.ApplyPatchType, encoded, options); err != nil {
		return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return nil
}

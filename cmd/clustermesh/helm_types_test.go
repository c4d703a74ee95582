package main

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
)

// schemaNode is as much of a JSON schema as names fields.
type schemaNode struct {
	Properties map[string]schemaNode `json:"properties"`
	Items      *schemaNode           `json:"items"`
}

// schemaFields lists the paths of all fields below a schema; elements of a list are "[]".
func schemaFields(node schemaNode, path string) []string {
	if node.Items != nil && len(node.Items.Properties) > 0 {
		return schemaFields(*node.Items, path+"[]")
	}
	if len(node.Properties) == 0 {
		return []string{path}
	}
	var fields []string
	for name, child := range node.Properties {
		fields = append(fields, schemaFields(child, path+"."+name)...)
	}
	slices.Sort(fields)
	return fields
}

// typeFields lists the same of a Go type, by its JSON names. Types that encode themselves are leaves.
func typeFields(of reflect.Type, path string) []string {
	for of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Struct && !encodesItself(of.Elem()) {
		return typeFields(of.Elem(), path+"[]")
	}
	if of.Kind() != reflect.Struct || encodesItself(of) {
		return []string{path}
	}
	var fields []string
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name != "" {
			fields = append(fields, typeFields(field.Type, path+"."+name)...)
		}
	}
	slices.Sort(fields)
	return fields
}

func encodesItself(of reflect.Type) bool {
	_, text := of.MethodByName("MarshalText")
	_, encodes := of.MethodByName("MarshalJSON")
	return text || encodes
}

// A field of the Go type that the CRD lacks would be pruned by the Kubernetes API server without a word.
func TestCRDMatchesGoTypes(t *testing.T) {
	type crd struct {
		metav1.TypeMeta
		Spec struct {
			Names    struct{ Kind string } `json:"names"`
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema schemaNode `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	types := map[string]map[string]reflect.Type{
		"Peer":             {"spec": reflect.TypeFor[v1alpha1.PeerSpec](), "status": reflect.TypeFor[v1alpha1.PeerStatus]()},
		"LoadBalancerPool": {"spec": reflect.TypeFor[v1alpha1.LoadBalancerPoolSpec](), "status": reflect.TypeFor[v1alpha1.LoadBalancerPoolStatus]()},
	}
	for _, document := range splitManifests(render(t, parseValues(t, minimal))) {
		if !strings.Contains(document, "\nkind: CustomResourceDefinition\n") {
			continue
		}
		var c crd
		if err := yaml.Unmarshal([]byte(document), &c); err != nil {
			t.Fatal(err)
		}
		kind := c.Spec.Names.Kind
		schema := c.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties
		for name, of := range types[kind] {
			if diff := cmp.Diff(typeFields(of, name), schemaFields(schema[name], name)); diff != "" {
				t.Errorf("fields of the Go type (-) and of the CRD of %s (+) differ:\n%s", kind, diff)
			}
		}
		delete(types, kind)
	}
	if len(types) > 0 {
		t.Errorf("no CRD in the chart for %v", types)
	}
}

// The values that go into the ConfigMap are exactly the fields that pkg/config knows, with the same defaults.
func TestValuesMatchConfig(t *testing.T) {
	loaded, err := loadChart()
	if err != nil {
		t.Fatal(err)
	}
	var schema schemaNode
	if err := json.Unmarshal(loaded.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	sections := map[string]schemaNode{}
	for _, name := range configSections() {
		sections[name] = schema.Properties[name]
	}
	got := schemaFields(schemaNode{Properties: sections}, "")
	if diff := cmp.Diff(typeFields(reflect.TypeFor[config.Config](), ""), got); diff != "" {
		t.Errorf("fields of config.Config (-) and of values.schema.json (+) differ:\n%s", diff)
	}

	defaults := map[string]any{}
	for _, name := range configSections() {
		defaults[name] = loaded.Values[name]
	}
	encoded, err := yaml.Marshal(defaults)
	if err != nil {
		t.Fatal(err)
	}
	var parsed config.Config
	if err := yaml.UnmarshalStrict(encoded, &parsed); err != nil {
		t.Fatal(err)
	}
	want, err := yaml.Marshal(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	have, err := yaml.Marshal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	// An absent list and an empty one are the same to both.
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "null", "[]"), string(have)); diff != "" {
		t.Errorf("defaults of config.Default (-) and of values.yaml (+) differ:\n%s", diff)
	}
}

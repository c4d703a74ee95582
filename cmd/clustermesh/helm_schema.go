package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
	chart "helm.sh/helm/v4/pkg/chart/v2"
)

// checkSchema checks merged values against the chart's schema. Helm does so too, but names neither the value nor what is
// allowed; a field's description in the schema says it here.
func checkSchema(loaded *chart.Chart, values map[string]any) error {
	schema, err := compileSchema(loaded.Schema)
	if err != nil {
		return err
	}
	// A round trip through JSON gives the number types that the validator knows.
	encoded, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("encode values: %w", err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
	if err != nil {
		return fmt.Errorf("decode values: %w", err)
	}
	var invalid *jsonschema.ValidationError
	if err := schema.Validate(instance); !errors.As(err, &invalid) {
		return err
	}
	var problems []error
	for _, leaf := range leaves(invalid) {
		problems = append(problems, describe(schema, instance, leaf))
	}
	return errors.Join(problems...)
}

func compileSchema(source []byte) (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(source))
	if err != nil {
		return nil, fmt.Errorf("decode schema of the chart: %w", err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("values.schema.json", document); err != nil {
		return nil, fmt.Errorf("add schema of the chart: %w", err)
	}
	schema, err := compiler.Compile("values.schema.json")
	if err != nil {
		return nil, fmt.Errorf("compile schema of the chart: %w", err)
	}
	return schema, nil
}

// leaves are the errors that have no cause below them, and alternatives as one, sorted by field.
func leaves(err *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if _, alternatives := err.ErrorKind.(*kind.AnyOf); alternatives || len(err.Causes) == 0 {
		return []*jsonschema.ValidationError{err}
	}
	var all []*jsonschema.ValidationError
	for _, cause := range err.Causes {
		all = append(all, leaves(cause)...)
	}
	slices.SortStableFunc(all, func(a, b *jsonschema.ValidationError) int {
		return slices.Compare(a.InstanceLocation, b.InstanceLocation)
	})
	return all
}

func describe(schema *jsonschema.Schema, instance any, err *jsonschema.ValidationError) error {
	at := schemaAt(schema, err.InstanceLocation)
	field := strings.Join(err.InstanceLocation, ".")
	switch problem := err.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		known := slices.Sorted(maps.Keys(at.Properties))
		prefix := field
		if prefix != "" {
			prefix += "."
		}
		return fmt.Errorf("%s%s: unknown field; known are %s", prefix, problem.Properties[0], strings.Join(known, ", "))
	case *kind.Required:
		return fmt.Errorf("%s: lacks %s", field, strings.Join(problem.Missing, ", "))
	}
	value, _ := json.Marshal(valueAt(instance, err.InstanceLocation))
	allowed := err.ErrorKind.LocalizedString(message.NewPrinter(language.English))
	if at != nil && at.Description != "" {
		allowed = "must be " + at.Description
	}
	return fmt.Errorf("%s: %s is not allowed; %s", field, value, allowed)
}

func schemaAt(schema *jsonschema.Schema, path []string) *jsonschema.Schema {
	for _, key := range path {
		next := schema.Properties[key]
		if items, ok := schema.Items.(*jsonschema.Schema); next == nil && ok {
			next = items
		}
		if next == nil {
			return &jsonschema.Schema{}
		}
		schema = next
	}
	return schema
}

func valueAt(instance any, path []string) any {
	for _, key := range path {
		switch at := instance.(type) {
		case map[string]any:
			instance = at[key]
		case []any:
			var index int
			if _, err := fmt.Sscan(key, &index); err != nil || index >= len(at) {
				return nil
			}
			instance = at[index]
		}
	}
	return instance
}

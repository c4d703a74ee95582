package main

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli/values"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/config"
)

// valueFlags are the ways to give values to the chart.
type valueFlags struct {
	files       []string
	set         []string
	setString   []string
	image       string
	clusterName string
}

func (f *valueFlags) register(set *pflag.FlagSet) {
	set.StringArrayVarP(&f.files, "values", "f", nil, "YAML file with values; may be given several times, the last one wins")
	set.StringArrayVar(&f.set, "set", nil, "set a value, as key=value; lists as key={a,b}")
	set.StringArrayVar(&f.setString, "set-string", nil, "set a value that is a string, as key=value")
	set.StringVar(&f.image, "image", "", "image to run, as repository:tag or repository@sha256:…")
	set.StringVar(&f.clusterName, "cluster-name", "", "name of this cluster in the mesh (default the name of the context)")
}

// read merges the flags, from the weakest to the strongest: files, --set, and the flags of a single value.
func (f *valueFlags) read() (map[string]any, error) {
	options := values.Options{ValueFiles: f.files, Values: f.set, StringValues: f.setString}
	merged, err := options.MergeValues(nil)
	if err != nil {
		return nil, fmt.Errorf("read values of -f and --set: %w", err)
	}
	image, err := imageValues(f.image)
	if err != nil {
		return nil, err
	}
	if image != nil {
		setValue(merged, image, "image")
	}
	if f.clusterName != "" {
		setValue(merged, f.clusterName, "cluster", "name")
	}
	return merged, nil
}

// imageValues splits an image reference into the chart's values; nil for an empty one.
func imageValues(image string) (map[string]any, error) {
	if image == "" {
		return nil, nil
	}
	if digest, err := name.NewDigest(image); err == nil {
		return map[string]any{"repository": repository(image, "@"), "tag": "", "digest": digest.DigestStr()}, nil
	}
	const remedy = "give repository:tag or repository@sha256:…"
	tag, err := name.NewTag(image)
	if err != nil {
		return nil, fmt.Errorf("--image %q: %w; %s", image, err, remedy)
	}
	if !strings.HasSuffix(image, ":"+tag.TagStr()) {
		return nil, fmt.Errorf("--image %q: has no tag; %s", image, remedy)
	}
	return map[string]any{"repository": repository(image, ":"), "tag": tag.TagStr(), "digest": ""}, nil
}

// repository is the part of an image reference before its last separator, as the user wrote it: parsed names have a
// default registry that a local image lacks.
func repository(image, separator string) string {
	return image[:strings.LastIndex(image, separator)]
}

// completed adds to the user's values what the cluster itself says, and reports each such value.
func completed(ctx context.Context, cluster *kubeCluster, user map[string]any, report func(finding)) (map[string]any, error) {
	found := map[string]any{}
	for _, d := range detectors(cluster) {
		if _, given := lookup(user, d.path...); given {
			continue
		}
		findings, err := d.find(ctx)
		if err != nil {
			return nil, err
		}
		for _, f := range findings {
			setValue(found, f.value, f.path...)
			report(f)
		}
	}
	return loader.MergeMaps(found, user), nil
}

// lookup finds the value at a path; a value that is null or empty counts as not given.
func lookup(tree map[string]any, path ...string) (any, bool) {
	var at any = tree
	for _, key := range path {
		table, ok := at.(map[string]any)
		if !ok {
			return nil, false
		}
		at = table[key]
	}
	list, isList := at.([]any)
	return at, at != nil && at != "" && !(isList && len(list) == 0)
}

// setValue writes a value at a path and makes the tables above it. A table is merged into one that is there.
func setValue(tree map[string]any, value any, path ...string) {
	for _, key := range path[:len(path)-1] {
		table, ok := tree[key].(map[string]any)
		if !ok {
			table = map[string]any{}
			tree[key] = table
		}
		tree = table
	}
	last := path[len(path)-1]
	old, isTable := tree[last].(map[string]any)
	if table, ok := value.(map[string]any); ok && isTable {
		maps.Copy(old, table)
		return
	}
	tree[last] = value
}

// configSections are the values that the ConfigMap holds, as in the chart's helper clustermesh.config.
func configSections() []string {
	return []string{"cluster", "kubernetes", "ipam", "routing", "masquerade", "services", "apiserver", "cni", "log"}
}

// checkConfig checks merged values the way the agents and the API server will.
func checkConfig(merged map[string]any) (config.Config, error) {
	file := map[string]any{}
	for _, section := range configSections() {
		file[section] = merged[section]
	}
	encoded, err := yaml.Marshal(file)
	if err != nil {
		return config.Config{}, fmt.Errorf("encode configuration: %w", err)
	}
	return config.Parse(encoded)
}

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadValues(t *testing.T) {
	file := writeFile(t, "values.yaml", `{cluster: {name: file, podCIDRs: [10.9.0.0/16]}, log: {level: warn}}`)
	flags := valueFlags{
		files:       []string{file},
		set:         []string{"cluster.podCIDRs={10.1.0.0/16,fd00::/48}", "log.level=debug"},
		setString:   []string{"pods.agent.podAnnotations.number=1"},
		image:       "registry:5000/clustermesh:v1",
		clusterName: "east",
	}
	got, err := flags.read()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cluster": map[string]any{"name": "east", "podCIDRs": []any{"10.1.0.0/16", "fd00::/48"}},
		"log":     map[string]any{"level": "debug"},
		"pods":    map[string]any{"agent": map[string]any{"podAnnotations": map[string]any{"number": "1"}}},
		"image":   map[string]any{"repository": "registry:5000/clustermesh", "tag": "v1", "digest": ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestImageValues(t *testing.T) {
	const digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	tests := map[string]map[string]any{
		"clustermesh:dev":           {"repository": "clustermesh", "tag": "dev", "digest": ""},
		"localhost:5000/c/m:v1":     {"repository": "localhost:5000/c/m", "tag": "v1", "digest": ""},
		"ghcr.io/c/m@" + digest:     {"repository": "ghcr.io/c/m", "tag": "", "digest": digest},
		"":                          nil,
		"docker.io/library/x:1.2-a": {"repository": "docker.io/library/x", "tag": "1.2-a", "digest": ""},
	}
	for image, want := range tests {
		got, err := imageValues(image)
		if err != nil {
			t.Errorf("%s: %v", image, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", image, diff)
		}
	}
}

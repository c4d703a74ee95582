package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// binaries makes stand-ins: the image does not care what a program does.
func binaries(t *testing.T, archs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, arch := range archs {
		for _, program := range []string{"clustermesh-agent", "clustermesh-cni", "clustermesh-apiserver"} {
			path := filepath.Join(dir, arch, program)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(program+arch), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestWrite(t *testing.T) {
	bin, out := binaries(t, "amd64", "arm64"), t.TempDir()
	var printed bytes.Buffer
	args := []string{"-bin", bin, "-out", out, "-repository", "example.org/clustermesh", "-tag", "v1"}
	if err := run(t.Context(), args, &printed); err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := tarball.ImageFromPath(filepath.Join(out, "clustermesh-"+arch+".tar"), nil)
		if err != nil {
			t.Fatal(err)
		}
		file, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if file.Architecture != arch {
			t.Errorf("architecture %s, want %s", file.Architecture, arch)
		}
	}
	if _, err := os.Stat(filepath.Join(out, "clustermesh-oci.tar")); err != nil {
		t.Error(err)
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/clustermesh"
	bin := binaries(t, "amd64", "arm64")
	if err := run(t.Context(), []string{"-bin", bin, "-push", "-repository", repository, "-tag", "v1"}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(repository + ":v1")
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range manifest.Manifests {
		got = append(got, m.Platform.String())
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"missing binary":   {[]string{"-bin", "/nowhere", "-out", t.TempDir()}, "/nowhere/amd64/clustermesh-agent"},
		"no machine type":  {[]string{"-arch", ","}, "amd64,arm64"},
		"surplus argument": {[]string{"push"}, `"push"`},
	}
	for label, tt := range tests {
		t.Run(label, func(t *testing.T) {
			err := run(t.Context(), tt.args, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

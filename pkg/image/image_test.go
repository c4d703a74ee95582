package image

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

type entry struct {
	Name string
	Mode int64
	Link string
	Body string
}

func contents(t *testing.T, img v1.Image) []entry {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers = %d, %v; want 1", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var entries []entry
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{h.Name, h.Mode, h.Linkname, string(body)})
	}
}

func program(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var want = []entry{
	{"bin/", 0o755, "", ""},
	{"bin/sh", 0o777, "/tool", ""},
	{"tool", 0o755, "", "program"},
}

func TestWriteDocker(t *testing.T) {
	files := []File{{HostPath: program(t), Name: "/tool"}, {Name: "/bin/sh", Link: "/tool"}}
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := Write(path, "example.org/tool:v1", files, Config{Arch: "arm64", Entrypoint: []string{"/tool"}}); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, contents(t, img)); diff != "" {
		t.Error(diff)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if file.OS != "linux" || file.Architecture != "arm64" || file.Config.Entrypoint[0] != "/tool" {
		t.Errorf("config = %+v", file)
	}
}

func TestWriteOCI(t *testing.T) {
	files := []File{{HostPath: program(t), Name: "/tool"}, {Name: "/bin/sh", Link: "/tool"}}
	var images []v1.Image
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := New(files, Config{Arch: arch})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := WriteOCI(path, "example.org/tool:v1", images...); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	untar(t, path, dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := index.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	platforms, err := inner.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range platforms.Manifests {
		got = append(got, m.Platform.String())
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, got); diff != "" {
		t.Error(diff)
	}
}

func untar(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameFilesSameDigest(t *testing.T) {
	path := program(t)
	a := File{HostPath: path, Name: "/a"}
	b := File{HostPath: path, Name: "/b"}
	first, err := New([]File{a, b}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := New([]File{b, a}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	d1, _ := first.Digest()
	d2, _ := second.Digest()
	if d1 != d2 {
		t.Errorf("digest depends on the order of files: %s, %s", d1, d2)
	}
}

func TestBadInput(t *testing.T) {
	path := program(t)
	tests := map[string]struct {
		tag  string
		file File
	}{
		"relative name": {"example.org/x:v1", File{HostPath: path, Name: "tool"}},
		"no such file":  {"example.org/x:v1", File{HostPath: path + ".none", Name: "/tool"}},
		"bad tag":       {"UPPER CASE", File{HostPath: path, Name: "/tool"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "x.tar")
			if err := Write(out, tt.tag, []File{tt.file}, Config{}); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("half an archive was left")
			}
		})
	}
}

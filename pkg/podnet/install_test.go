package podnet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newInstall(t *testing.T) Install {
	dir := t.TempDir()
	i := Install{Binary: filepath.Join(dir, "src"), BinDir: filepath.Join(dir, "opt", "bin"), ConfDir: filepath.Join(dir, "net.d")}
	write(t, i.Binary, "binary")
	return i
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tree is name → content of all files in a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = string(data)
	}
	return out
}

const wantConflist = `{
  "cniVersion": "1.1.0",
  "cniVersions": [
    "0.3.1",
    "0.4.0",
    "1.0.0",
    "1.1.0"
  ],
  "name": "clustermesh",
  "plugins": [
    {
      "type": "clustermesh-cni",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
`

func TestInstall(t *testing.T) {
	i := newInstall(t)
	for range 2 {
		if err := i.Plugin(); err != nil {
			t.Fatal(err)
		}
		if err := i.Config(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]string{conflistName: wantConflist}, tree(t, i.ConfDir)); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(i.plugin())
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("plugin: %v, %v", info, err)
	}
	write(t, i.Binary, "newer")
	if err := i.Plugin(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"clustermesh-cni": "newer"}, tree(t, i.BinDir)); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		if err := i.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(tree(t, i.ConfDir)) + len(tree(t, i.BinDir)); got != 0 {
		t.Errorf("%d files stay", got)
	}
}

// TestInstallSkipsIdentical: a file that is as it should be is not replaced, so
// that runtimes that watch the directory do not start over.
func TestInstallSkipsIdentical(t *testing.T) {
	i := newInstall(t)
	var infos []os.FileInfo
	for range 2 {
		if err := i.Config(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(i.ConfDir, conflistName))
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
	}
	if !os.SameFile(infos[0], infos[1]) {
		t.Error("the file was replaced")
	}
}

func TestExclusive(t *testing.T) {
	others := map[string]string{"00-a.conf": "a", "10-b.conflist": "b", "c.json": "c", "README": "r", ".hidden.conf": "h"}
	i := newInstall(t)
	for name, content := range others {
		write(t, filepath.Join(i.ConfDir, name), content)
	}
	if err := i.Config(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{conflistName: wantConflist}
	for name, content := range others {
		want[name] = content
	}
	if diff := cmp.Diff(want, tree(t, i.ConfDir)); diff != "" {
		t.Errorf("not exclusive: %s", diff)
	}
	i.Exclusive = true
	for range 2 {
		if err := i.Config(); err != nil {
			t.Fatal(err)
		}
	}
	want = map[string]string{conflistName: wantConflist, "README": "r", ".hidden.conf": "h",
		"00-a.conf.clustermesh-disabled": "a", "10-b.conflist.clustermesh-disabled": "b", "c.json.clustermesh-disabled": "c"}
	if diff := cmp.Diff(want, tree(t, i.ConfDir)); diff != "" {
		t.Errorf("exclusive: %s", diff)
	}
	if err := i.Remove(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(others, tree(t, i.ConfDir)); diff != "" {
		t.Errorf("removed: %s", diff)
	}
}

func TestPluginMissing(t *testing.T) {
	i := newInstall(t)
	i.Binary += "-gone"
	if err := i.Plugin(); err == nil || !strings.Contains(err.Error(), "read CNI plugin: open "+i.Binary) {
		t.Errorf("error %v", err)
	}
}

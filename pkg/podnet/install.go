package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

const (
	conflistName = "05-clustermesh.conflist"
	disabled     = ".clustermesh-disabled"
	networkName  = "clustermesh"
)

// Install puts the plugin and its configuration where the container runtime of
// the node looks for them, and takes them away again.
type Install struct {
	Binary  string // the plugin in the agent's image; empty means /clustermesh-cni
	BinDir  string // empty means /opt/cni/bin
	ConfDir string // empty means /etc/cni/net.d
	// Exclusive moves the configurations of other networks aside.
	Exclusive bool
	Log       *slog.Logger
}

func (i Install) binary() string { return orDefault(i.Binary, "/"+api.PluginType) }
func (i Install) plugin() string {
	return filepath.Join(orDefault(i.BinDir, "/opt/cni/bin"), api.PluginType)
}
func (i Install) confDir() string { return orDefault(i.ConfDir, "/etc/cni/net.d") }

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Plugin copies the plugin's binary. A runtime that starts it meanwhile gets
// the old one or the new one, whole.
func (i Install) Plugin() error {
	data, err := os.ReadFile(i.binary())
	if err != nil {
		return fmt.Errorf("read CNI plugin: %w", err)
	}
	return i.put(i.plugin(), data, 0o755)
}

// Config writes the CNI configuration, upon which the runtime says that the
// node's network is ready. Call it when the agent can serve.
func (i Install) Config() error {
	data, err := conflist()
	if err != nil {
		return err
	}
	if err := i.put(filepath.Join(i.confDir(), conflistName), data, 0o644); err != nil {
		return err
	}
	if i.Exclusive {
		return i.disableOthers()
	}
	return nil
}

func conflist() ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"` // what the runtime shall tell us of a pod
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{api.Newest, api.Versions(), networkName, []plugin{{api.PluginType, map[string]bool{"portMappings": true}}}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// put writes a file by rename, unless it is there already as it should be.
func (i Install) put(path string, data []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	// The dot and the suffix keep runtimes from reading it half-written.
	aside := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	err := os.WriteFile(aside, data, mode)
	if err == nil {
		err = errors.Join(os.Chmod(aside, mode), os.Rename(aside, path))
	}
	if err != nil {
		os.Remove(aside)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if i.Log != nil {
		i.Log.Info("file installed", "path", path)
	}
	return nil
}

// disableOthers renames what the runtime could pick instead of our network.
func (i Install) disableOthers() error {
	files, err := os.ReadDir(i.confDir())
	if err != nil {
		return fmt.Errorf("list CNI configurations: %w", err)
	}
	var errs []error
	for _, f := range files {
		if f.Name() == conflistName || !isConfig(f.Name()) {
			continue
		}
		path := filepath.Join(i.confDir(), f.Name())
		if err := os.Rename(path, path+disabled); err != nil {
			errs = append(errs, fmt.Errorf("disable other network: %w", err))
		} else if i.Log != nil {
			i.Log.Info("configuration of another network moved aside (cni.exclusive)", "path", path, "to", path+disabled)
		}
	}
	return errors.Join(errs...)
}

func isConfig(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// Remove takes the configuration and the plugin away and puts those of other
// networks back.
func (i Install) Remove() error {
	errs := []error{remove(filepath.Join(i.confDir(), conflistName)), remove(i.plugin())}
	files, err := os.ReadDir(i.confDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list CNI configurations: %w", err))
	}
	for _, f := range files {
		if name, ours := strings.CutSuffix(f.Name(), disabled); ours {
			errs = append(errs, restoreFile(filepath.Join(i.confDir(), f.Name()), filepath.Join(i.confDir(), name)))
		}
	}
	return errors.Join(errs...)
}

// restoreFile renames a file back, unless somebody wrote a new one meanwhile.
func restoreFile(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return remove(from)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("put configuration back: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

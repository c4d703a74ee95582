package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Versions of the parts that are not pinned by a go.mod of test/kube.
const (
	kubeVersion       = "v1.36.3"
	containerdVersion = "v2.4.2"
	cniVersion        = "v1.9.1"
)

// Parts are the Kubernetes programs, built from source once per set of versions.
type Parts struct {
	// Dir holds them all, under their usual names.
	Dir string
}

// part is one go command and what it makes.
type part struct {
	name     string
	programs []string
	dir      string // relative to test/kube, or "" for packages by version
	ldflags  string
	packages []string
}

func kubeParts() []part {
	v := "k8s.io/component-base/version"
	minor := strings.Split(kubeVersion, ".")[1]
	return []part{
		{
			name: "Kubernetes " + kubeVersion, programs: []string{"kube"}, dir: ".", packages: []string{"."},
			ldflags: fmt.Sprintf("-s -w -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s -X %s.gitTreeState=clean",
				v, kubeVersion, v, v, minor, v),
		},
		{name: "etcd", programs: []string{"etcd"}, dir: "etcd", packages: []string{"."}, ldflags: "-s -w"},
		{
			name: "containerd " + containerdVersion, programs: []string{"containerd", "containerd-shim-runc-v2", "ctr"},
			ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=" + containerdVersion,
			packages: []string{
				"github.com/containerd/containerd/v2/cmd/containerd@" + containerdVersion,
				"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@" + containerdVersion,
				"github.com/containerd/containerd/v2/cmd/ctr@" + containerdVersion,
			},
		},
		{
			name: "CNI plugins " + cniVersion, programs: []string{"bridge", "loopback", "host-local", "portmap"}, ldflags: "-s -w",
			packages: []string{
				"github.com/containernetworking/plugins/plugins/main/bridge@" + cniVersion,
				"github.com/containernetworking/plugins/plugins/main/loopback@" + cniVersion,
				"github.com/containernetworking/plugins/plugins/ipam/host-local@" + cniVersion,
				"github.com/containernetworking/plugins/plugins/meta/portmap@" + cniVersion,
			},
		},
	}
}

// kubeNames are the programs the one binary "kube" is.
func kubeNames() []string {
	return []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}
}

// BuildParts builds what is missing, one part after the other: each alone keeps
// every core busy, and together they would want more memory than small machines
// have.
func BuildParts(ctx context.Context, p *progress) (Parts, error) {
	parts, err := findParts()
	if err != nil {
		return Parts{}, err
	}
	source, err := kubeSource()
	if err != nil {
		return Parts{}, err
	}
	if err := os.MkdirAll(parts.Dir, 0o755); err != nil {
		return Parts{}, fmt.Errorf("make directory for programs: %w", err)
	}
	for _, part := range kubeParts() {
		if parts.have(part.programs) {
			continue
		}
		if err := parts.build(ctx, p, source, part); err != nil {
			return Parts{}, err
		}
	}
	for _, name := range kubeNames() {
		link := filepath.Join(parts.Dir, name)
		if exists(link) {
			continue
		}
		if err := os.Symlink("kube", link); err != nil && !errors.Is(err, os.ErrExist) {
			return Parts{}, fmt.Errorf("link %s: %w", name, err)
		}
	}
	return parts, nil
}

func (p Parts) have(programs []string) bool {
	for _, name := range programs {
		if !exists(filepath.Join(p.Dir, name)) {
			return false
		}
	}
	return true
}

// build makes a part in a directory of its own and then moves the programs to
// where they are looked for, so that none is ever there half-written.
func (p Parts) build(ctx context.Context, out *progress, source string, part part) error {
	tmp, err := os.MkdirTemp(p.Dir, ".build-")
	if err != nil {
		return fmt.Errorf("build %s: %w", part.name, err)
	}
	defer os.RemoveAll(tmp)
	argv := []string{"install", "-ldflags", part.ldflags}
	dir := "/"
	if part.dir != "" {
		dir = filepath.Join(source, part.dir)
		argv = []string{"build", "-ldflags", part.ldflags, "-o", filepath.Join(tmp, part.programs[0])}
	}
	cmd := exec.CommandContext(ctx, "go", append(argv, part.packages...)...)
	cmd.Dir = dir
	// Static programs. -mod=mod: the nested modules may lack a go.sum line or two.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -mod=mod -trimpath", "GOBIN="+tmp)
	if err := runShowingTime(cmd, out, "building "+part.name); err != nil {
		return err
	}
	for _, name := range part.programs {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(p.Dir, name)); err != nil {
			return fmt.Errorf("build %s: %w", part.name, err)
		}
	}
	return nil
}

// runShowingTime runs cmd with a line at its begin, every 15 seconds, and at its end.
func runShowingTime(cmd *exec.Cmd, out *progress, what string) error {
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	out.step("%s", what)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(15 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s: %w: %s", what, err, lastLines(output.String()))
			}
			out.step("%s: done in %.0f s", what, time.Since(start).Seconds())
			return nil
		case <-tick.C:
			out.step("%s: still at it after %.0f s", what, time.Since(start).Seconds())
		}
	}
}

// findParts says where the programs are or will be: outside the clone, so that a
// second clone need not link them again, and by a hash of all that goes into them.
func findParts() (Parts, error) {
	if dir := os.Getenv("LAB_BIN"); dir != "" {
		return Parts{dir}, nil
	}
	source, err := kubeSource()
	if err != nil {
		return Parts{}, err
	}
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOARCH, kubeParts())
	for _, name := range []string{"go.mod", "go.sum", "main.go", "etcd/go.mod", "etcd/go.sum", "etcd/main.go"} {
		f, err := os.Open(filepath.Join(source, name))
		if err != nil {
			return Parts{}, fmt.Errorf("hash sources of the lab's programs: %w", err)
		}
		_, err = io.Copy(hash, f)
		f.Close()
		if err != nil {
			return Parts{}, fmt.Errorf("hash sources of the lab's programs: %w", err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Parts{}, fmt.Errorf("find cache directory: %w", err)
	}
	return Parts{filepath.Join(cache, "clustermesh-lab", hex.EncodeToString(hash.Sum(nil))[:16], "bin")}, nil
}

func hashOf(r io.Reader) (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// moduleDir is the root of the clone we run in.
func moduleDir() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/clustermesh/clustermesh").Output()
	if err != nil {
		return "", fmt.Errorf("find the clone of clustermesh: run this inside it: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func kubeSource() (string, error) {
	dir, err := moduleDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "test", "kube"), nil
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	Dir string `json:"dir"`
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
func BuildParts(ctx context.Context, out io.Writer) (Parts, error) {
	return buildParts(ctx, newProgress(out))
}

func buildParts(ctx context.Context, p *progress) (Parts, error) {
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

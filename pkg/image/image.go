// Package image builds container images out of files on this machine, without
// Docker and without a base image, and writes them as archives or pushes them.
//
// Images are reproducible: the same files give the same digest, since times are
// zero, owners are root, and entries are sorted by name. The package never runs
// anything and never unpacks an image.
package image

import (
	"fmt"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of the image: a regular file copied from HostPath, or a
// symbolic link when Link is set.
type File struct {
	// HostPath is read when the image is written.
	HostPath string
	// Name is the absolute path inside the image; directories above it are made.
	Name string
	// Mode holds the permission bits; zero means 0755, since most files are programs.
	Mode int64
	// Link, if set, is what the symbolic link Name points to.
	Link string
}

// Config is what the runtime reads: how to start the image, and for which machine.
type Config struct {
	// Arch is a GOARCH; empty means this machine's.
	Arch       string
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	Labels     map[string]string
}

// New makes a one-layer Linux image. The layer is gzip-compressed, as registries
// expect it.
func New(files []File, cfg Config) (v1.Image, error) {
	return build(files, cfg, true)
}

func build(files []File, cfg Config, compress bool) (v1.Image, error) {
	layer, err := newLayer(files, compress)
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, layer)
	if err != nil {
		return nil, fmt.Errorf("append image layer: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	img, err = mutate.ConfigFile(img, configure(file.DeepCopy(), cfg))
	if err != nil {
		return nil, fmt.Errorf("set image config: %w", err)
	}
	return img, nil
}

func configure(file *v1.ConfigFile, cfg Config) *v1.ConfigFile {
	file.OS = "linux"
	file.Architecture = cfg.Arch
	if file.Architecture == "" {
		file.Architecture = runtime.GOARCH
	}
	file.Config = v1.Config{
		Entrypoint: cfg.Entrypoint,
		Cmd:        cfg.Cmd,
		Env:        cfg.Env,
		User:       cfg.User,
		Labels:     cfg.Labels,
	}
	return file
}

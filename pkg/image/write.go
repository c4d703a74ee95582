package image

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Write makes an image of files and writes it to path as a docker-archive (what
// docker load and ctr images import read), tagged tag. Its layer is not
// compressed, so that nodes import it quickly; use New for what goes to a registry.
func Write(path, tag string, files []File, cfg Config) error {
	img, err := build(files, cfg, false)
	if err != nil {
		return err
	}
	return WriteDocker(path, map[string]v1.Image{tag: img})
}

// WriteDocker writes images by tag to path as one docker-archive. The file
// appears whole or not at all.
func WriteDocker(path string, images map[string]v1.Image) error {
	byRef := map[name.Tag]v1.Image{}
	for tag, img := range images {
		ref, err := name.NewTag(tag)
		if err != nil {
			return fmt.Errorf("parse image tag %q: %w", tag, err)
		}
		byRef[ref] = img
	}
	return writeWhole(path, func(f *os.File) error {
		return tarball.MultiWrite(byRef, f)
	})
}

// WriteOCI writes images of one tag, one per architecture, to path as a tar of an
// OCI image layout with an image index.
func WriteOCI(path, tag string, images ...v1.Image) error {
	index, err := newIndex(images)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".oci-")
	if err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write image layout of %s: %w", tag, err)
	}
	// containerd reads its own annotation, everything else the OCI one.
	names := map[string]string{
		"org.opencontainers.image.ref.name": tag,
		"io.containerd.image.name":          tag,
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return fmt.Errorf("write image index of %s: %w", tag, err)
	}
	return writeWhole(path, func(f *os.File) error { return tarDir(f, dir) })
}

// Push pushes images of one tag, one per architecture, with the credentials of
// the user's Docker configuration.
func Push(ctx context.Context, tag string, images ...v1.Image) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("parse image tag %q: %w", tag, err)
	}
	index, err := newIndex(images)
	if err != nil {
		return err
	}
	err = remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return fmt.Errorf("push image %s: %w", tag, err)
	}
	return nil
}

func newIndex(images []v1.Image) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, img := range images {
		file, err := img.ConfigFile()
		if err != nil {
			return nil, fmt.Errorf("read image config: %w", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: file.OS, Architecture: file.Architecture}},
		})
	}
	return index, nil
}

// writeWhole writes path through a temporary file beside it.
func writeWhole(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

func tarDir(w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return writeFile(t, rel, File{HostPath: path, Mode: 0o644})
	})
	if err != nil {
		return err
	}
	return t.Close()
}

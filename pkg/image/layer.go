package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// newLayer packs files into one layer. Uncompressed layers are for local
// archives: a node that imports one would only spend its time unpacking gzip.
func newLayer(files []File, compress bool) (v1.Layer, error) {
	var buf bytes.Buffer
	if err := writeTar(&buf, files); err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}
	opts := []tarball.LayerOption{tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching}
	if !compress {
		opts = []tarball.LayerOption{
			tarball.WithMediaType(types.OCIUncompressedLayer),
			tarball.WithCompression(compression.None),
		}
	}
	layer, err := tarball.LayerFromOpener(opener, opts...)
	if err != nil {
		return nil, fmt.Errorf("make layer of %d files: %w", len(files), err)
	}
	return layer, nil
}

func writeTar(w io.Writer, files []File) error {
	sorted := slices.Clone(files)
	slices.SortFunc(sorted, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	t := tar.NewWriter(w)
	made := map[string]bool{}
	for _, f := range sorted {
		if !path.IsAbs(f.Name) {
			return fmt.Errorf("add %q to image: the name must be an absolute path", f.Name)
		}
		name := strings.TrimPrefix(path.Clean(f.Name), "/")
		if err := writeParents(t, name, made); err != nil {
			return err
		}
		if err := writeFile(t, name, f); err != nil {
			return fmt.Errorf("add %s to image: %w", f.Name, err)
		}
	}
	return t.Close()
}

// writeParents makes every directory above name once: without entries of their
// own they would get whatever mode the unpacking runtime chooses.
func writeParents(t *tar.Writer, name string, made map[string]bool) error {
	dir := path.Dir(name)
	if dir == "." || made[dir] {
		return nil
	}
	if err := writeParents(t, dir, made); err != nil {
		return err
	}
	made[dir] = true
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func writeFile(t *tar.Writer, name string, f File) error {
	if f.Link != "" {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.Link, Mode: 0o777})
	}
	src, err := os.Open(f.HostPath)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	mode := f.Mode
	if mode == 0 {
		mode = 0o755
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: info.Size()}
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(t, src)
	return err
}

package lab

import (
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/image"
)

// ToolImage is the lab's test server and client, on every node; see
// test/lab/cmd/labtool.
const ToolImage = "ghcr.io/clustermesh/labtool:lab"

const pauseImage = "registry.k8s.io/pause:3.10"

func (l *Lab) imagePath(name string) string { return filepath.Join(l.Dir(), "images", name+".tar") }

func (l *Lab) ownImages() []string {
	return []string{l.imagePath("pause"), l.imagePath("labtool")}
}

// writeOwnImages packs the sandbox's and the test tool's image.
func (l *Lab) writeOwnImages() error {
	if err := os.MkdirAll(filepath.Join(l.Dir(), "images"), 0o755); err != nil {
		return err
	}
	pause := []image.File{{HostPath: l.ownBin("pause"), Name: "/pause"}}
	if err := image.Write(l.imagePath("pause"), pauseImage, pause, image.Config{Entrypoint: []string{"/pause"}}); err != nil {
		return err
	}
	files := append(shell(), image.File{HostPath: l.ownBin("labtool"), Name: "/bin/labtool"})
	return image.Write(l.imagePath("labtool"), ToolImage, files, image.Config{
		Entrypoint: []string{"/bin/labtool"},
		Cmd:        []string{"serve"},
		Env:        []string{"PATH=/bin"},
	})
}

// shell is busybox for people who look around in a pod, if the machine has it as
// a static program; nothing needs it.
func shell() []image.File {
	path, err := findTool("busybox")
	if err != nil || !static(path) {
		return nil
	}
	files := []image.File{{HostPath: path, Name: "/bin/busybox"}}
	for _, applet := range strings.Fields("sh ls cat ip ping nc wget ps vi env sleep traceroute") {
		files = append(files, image.File{Name: "/bin/" + applet, Link: "busybox"})
	}
	return files
}

func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// Import gives archives to every running node, and to those that join later.
// Archives a node has are skipped.
func (l *Lab) Import(ctx context.Context, archives ...string) error {
	group, gctx := errgroup.WithContext(ctx)
	for _, c := range l.Clusters {
		for _, n := range c.Nodes {
			if n.Running() {
				group.Go(func() error { return n.importImages(gctx, archives) })
			}
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, path := range archives {
		if !slices.Contains(l.cfg.Images, path) {
			l.cfg.Images = append(l.cfg.Images, path)
		}
	}
	return l.save(true)
}

// importImages streams archives into the node's containerd: their paths may not
// exist on the node.
func (n *Node) importImages(ctx context.Context, archives []string) error {
	for _, path := range archives {
		if err := n.importImage(ctx, path); err != nil {
			return fmt.Errorf("import image %s on %s: %w", path, n.Name, err)
		}
	}
	return nil
}

func (n *Node) importImage(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	mark, done, err := n.imported(f)
	if err != nil || done {
		return err
	}
	cmd, err := n.command(ctx, "ctr", "-n", "k8s.io", "images", "import", "--digests=false", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = f
	if _, err := runIn(cmd, n.systemCgroup(), "ctr images import"); err != nil {
		return err
	}
	return writeFile(mark, nil)
}

// imported tells whether the node's disk has the archive already, by a mark that
// is named after its content.
func (n *Node) imported(f *os.File) (mark string, done bool, err error) {
	sum, err := hashOf(f)
	if err != nil {
		return "", false, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", false, err
	}
	mark = filepath.Join(n.dir(), "imported", sum)
	return mark, exists(mark), nil
}

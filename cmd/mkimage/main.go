// Command mkimage makes the product's image out of built binaries: a docker-archive for each machine type, which a
// node's runtime imports as it is, an OCI archive for all of them, or a push to a registry. It builds no binary.
package main

import (
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clustermesh/clustermesh/pkg/image"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// A repository and the source of an image, as OCI's annotations name them.
const (
	defaultRepository = "ghcr.io/clustermesh/clustermesh"
	source            = "https://github.com/clustermesh/clustermesh"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

type options struct {
	bin        string
	out        string
	archs      []string
	repository string
	tag        string
	push       bool
}

func run(ctx context.Context, args []string, out io.Writer) error {
	opts, err := parse(args, out)
	if err != nil {
		return err
	}
	for _, arch := range opts.archs {
		if err := static(opts.bin, arch); err != nil {
			return err
		}
	}
	if opts.push {
		return push(ctx, opts, out)
	}
	return write(opts, out)
}

func parse(args []string, out io.Writer) (options, error) {
	opts := options{}
	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&opts.bin, "bin", "bin", "`directory` with the binaries, in one directory per machine type")
	flags.StringVar(&opts.out, "out", "bin/images", "`directory` for the archives")
	archs := flags.String("arch", "amd64,arm64", "machine `types`")
	flags.StringVar(&opts.repository, "repository", defaultRepository, "`name` of the image without tag")
	flags.StringVar(&opts.tag, "tag", version.Version, "tag of the image")
	flags.BoolVar(&opts.push, "push", false, "push to the repository instead of writing archives")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if flags.NArg() > 0 {
		return opts, fmt.Errorf("argument %q: only flags are known", flags.Arg(0))
	}
	opts.archs = strings.FieldsFunc(*archs, func(r rune) bool { return r == ',' || r == ' ' })
	if len(opts.archs) == 0 {
		return opts, fmt.Errorf("-arch %q: name at least one, for example amd64,arm64", *archs)
	}
	return opts, nil
}

func (o options) name() string { return o.repository + ":" + o.tag }

// write leaves clustermesh-<arch>.tar for each machine type, and clustermesh-oci.tar with all if they are several.
func write(opts options, out io.Writer) error {
	if err := os.MkdirAll(opts.out, 0o755); err != nil {
		return fmt.Errorf("make directory for images: %w", err)
	}
	for _, arch := range opts.archs {
		path := filepath.Join(opts.out, "clustermesh-"+arch+".tar")
		if err := image.Write(path, opts.name(), files(opts.bin, arch), config(arch, opts.tag)); err != nil {
			return err
		}
		fmt.Fprintln(out, path, opts.name(), "linux/"+arch)
	}
	if len(opts.archs) == 1 {
		return nil
	}
	images, err := build(opts)
	if err != nil {
		return err
	}
	path := filepath.Join(opts.out, "clustermesh-oci.tar")
	if err := image.WriteOCI(path, opts.name(), images...); err != nil {
		return err
	}
	fmt.Fprintln(out, path, opts.name(), strings.Join(opts.archs, ","))
	return nil
}

func push(ctx context.Context, opts options, out io.Writer) error {
	images, err := build(opts)
	if err != nil {
		return err
	}
	if err := image.Push(ctx, opts.name(), images...); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "pushed", opts.name(), "for", strings.Join(opts.archs, ","))
	return err
}

func build(opts options) ([]v1.Image, error) {
	var images []v1.Image
	for _, arch := range opts.archs {
		made, err := image.New(files(opts.bin, arch), config(arch, opts.tag))
		if err != nil {
			return nil, fmt.Errorf("build image for %s: %w", arch, err)
		}
		images = append(images, made)
	}
	return images, nil
}

// static refuses programs that want a dynamic linker: the image has none, and the runtime would only say "no such file".
func static(bin, arch string) error {
	for _, f := range files(bin, arch) {
		program, err := elf.Open(f.HostPath)
		var notELF *elf.FormatError
		if errors.As(err, &notELF) {
			continue // a script or a test's stand-in
		}
		if err != nil {
			return fmt.Errorf("read program: %w", err)
		}
		dynamic := slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		program.Close()
		if dynamic {
			return fmt.Errorf("program %s is dynamically linked; build it with CGO_ENABLED=0", f.HostPath)
		}
	}
	return nil
}

// files are all the image holds: static programs, no shell, no certificates; whom to trust comes from Kubernetes.
func files(bin, arch string) []image.File {
	var list []image.File
	for _, program := range []string{"clustermesh-agent", "clustermesh-cni", "clustermesh-apiserver"} {
		list = append(list, image.File{HostPath: filepath.Join(bin, arch, program), Name: "/" + program})
	}
	return list
}

func config(arch, tag string) image.Config {
	return image.Config{
		Arch:       arch,
		Entrypoint: []string{"/clustermesh-agent"},
		Labels: map[string]string{
			"org.opencontainers.image.title":   "clustermesh",
			"org.opencontainers.image.version": tag,
			"org.opencontainers.image.source":  source,
		},
	}
}

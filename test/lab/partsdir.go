package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// findParts says where the programs are or will be: outside the clone, so that a
// second clone need not link them again, and by a hash of all that goes into them.
func findParts() (Parts, error) {
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

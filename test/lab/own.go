package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ownBin is a small program of ours, built for this lab.
func (l *Lab) ownBin(name string) string { return filepath.Join(l.Dir(), "bin", name) }

// buildOwn builds labnode, labtool and pause. They change with the clone, so
// every Up asks go, which is quick when nothing did.
func (l *Lab) buildOwn(ctx context.Context) error {
	dir, err := moduleDir()
	if err != nil {
		return err
	}
	bin := filepath.Join(l.Dir(), "bin")
	tmp, err := os.MkdirTemp(l.Dir(), ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", tmp,
		"./test/lab/cmd/labnode", "./test/lab/cmd/labtool", "./test/lab/cmd/pause")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the lab's own programs: %w: %s", err, lastLines(string(out)))
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	// Renamed, since those that run cannot be written to.
	for _, name := range []string{"labnode", "labtool", "pause"} {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	return nil
}

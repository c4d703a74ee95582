package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Down removes everything of the named lab, in whatever state it is. A lab that
// does not exist is down.
func Down(ctx context.Context, dir, name string) error {
	cfg := Config{Name: name, Dir: dir}.withDefaults()
	if !labName.MatchString(cfg.Name) {
		return fmt.Errorf("check lab name %q: use 1 to 16 lower-case letters and digits, a letter first", name)
	}
	groups, err := findCgroups()
	if err != nil {
		return err
	}
	unlock, err := lockLab(ctx, cfg.Dir, cfg.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := clean(ctx, cfg.Dir, cfg.Name, groups); err != nil {
		return fmt.Errorf("take down lab %s: %w", name, err)
	}
	if err := os.RemoveAll(filepath.Join(cfg.Dir, cfg.Name)); err != nil {
		return fmt.Errorf("take down lab %s: %w", name, err)
	}
	_ = os.Remove(cfg.Dir) // when it was the last lab
	return nil
}

// clean ends the processes, then removes what only they kept in use: cgroups,
// namespaces (and with them devices and mounts), files. It goes by names alone,
// so it needs no state. The lab's directory itself stays: it is the lock.
func clean(ctx context.Context, dir, name string, groups cgroups) error {
	group := Config{Name: name}.cgroupName()
	if err := groups.kill(ctx, group); err != nil {
		return err
	}
	if err := groups.remove(ctx, group); err != nil {
		return err
	}
	if err := deleteNamespaces(name); err != nil {
		return err
	}
	root := filepath.Join(dir, name)
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func deleteNamespaces(lab string) error {
	ours := regexp.MustCompile(`^` + regexp.QuoteMeta(lab) + `-(fabric|[a-z0-9]+-n[0-9]+)$`)
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		if !ours.MatchString(e.Name()) {
			continue
		}
		if err := deleteNetns(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

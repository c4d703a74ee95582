// Package journal remembers the pod attachments of this node in files, one per
// attachment, so that an agent that was killed or upgraded knows them again.
// It owns its directory and decides nothing.
//
// Files are written aside and renamed, without fsync: page cache survives a
// killed agent, and after a power failure the pods are gone as well, so all
// that a lost or torn file can say is "free me", which Load does with it anyway.
package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	suffix    = ".json"
	temporary = ".tmp"
	rejected  = ".rejected"
)

// Journal is an open and locked directory.
type Journal struct {
	dir  string
	lock *os.File
}

// Problem is a file that could not be understood and was moved aside.
type Problem struct {
	File string // where it is now
	Err  error
}

// Open creates dir if need be and locks it. While another process, such as the
// agent that is being replaced, has the lock, it waits until ctx ends.
func Open(ctx context.Context, dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &Journal{dir: dir, lock: lock}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock journal %s: %w", dir, err), lock.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock journal %s, which another agent holds: %w", dir, ctx.Err()), lock.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close releases the lock.
func (j *Journal) Close() error { return j.lock.Close() }

// Put writes e, replacing what was there, all or nothing.
func (j *Journal) Put(e Entry) error {
	data, err := json.Marshal(e.file())
	if err != nil {
		return fmt.Errorf("encode journal entry %s: %w", e.Pod.HostIf, err)
	}
	path := j.path(e.Pod.HostIf)
	if err := os.WriteFile(path+temporary, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write journal entry: %w", errors.Join(err, removeFile(path+temporary)))
	}
	if err := os.Rename(path+temporary, path); err != nil {
		return fmt.Errorf("write journal entry: %w", errors.Join(err, removeFile(path+temporary)))
	}
	return nil
}

// Delete removes the entry of the attachment with that host interface. It is
// no error if there is none.
func (j *Journal) Delete(hostIf string) error {
	if err := removeFile(j.path(hostIf)); err != nil {
		return fmt.Errorf("delete journal entry: %w", err)
	}
	return nil
}

// Load returns all entries, oldest first. Files that make no sense are moved
// aside and returned as problems; leftovers of an interrupted Put are removed.
// An entry of a newer version is an error: its pod lives, and must not be taken
// for one that is unknown.
func (j *Journal) Load() ([]Entry, []Problem, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	var entries []Entry
	var problems []Problem
	for _, f := range files {
		path := filepath.Join(j.dir, f.Name())
		switch {
		case strings.HasSuffix(f.Name(), temporary):
			err = removeFile(path)
		case strings.HasSuffix(f.Name(), suffix):
			var e Entry
			if e, err = read(path); err == nil {
				entries = append(entries, e)
				continue
			}
			var other *VersionError
			if errors.As(err, &other) {
				return nil, nil, fmt.Errorf("read journal entry %s: %w", path, err)
			}
			problems = append(problems, Problem{File: path + rejected, Err: err})
			err = os.Rename(path, path+rejected)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("clean journal: %w", err)
		}
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Pod.HostIf, b.Pod.HostIf))
	})
	return entries, problems, nil
}

func read(path string) (Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Entry{}, err
	}
	e, err := decode(data)
	if err != nil {
		return Entry{}, err
	}
	if name := strings.TrimSuffix(filepath.Base(path), suffix); name != e.Pod.HostIf {
		return Entry{}, fmt.Errorf("hostIf is %q in a file named %q", e.Pod.HostIf, name)
	}
	return e, nil
}

func (j *Journal) path(hostIf string) string {
	return filepath.Join(j.dir, filepath.Base(hostIf)+suffix)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups knows where a machine mounts its cgroup hierarchies: version 2 alone,
// or version 2 beside version 1 ("hybrid").
//
// Every process of a lab is in the version 2 cgroup clustermesh-lab-<lab>/<node>,
// so that killing that one cgroup is the node's power cut. In the version 1
// hierarchies only the pods are, below a directory of the same name.
type cgroups struct {
	v2 string
	v1 []string
}

const cgroupMount = "/sys/fs/cgroup"

func findCgroups() (cgroups, error) {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return cgroups{v2: cgroupMount}, nil
	}
	v2 := filepath.Join(cgroupMount, "unified")
	if _, err := os.Stat(filepath.Join(v2, "cgroup.controllers")); err != nil {
		return cgroups{}, fmt.Errorf("find cgroup v2 at %s or %s: %w", cgroupMount, v2, err)
	}
	found := cgroups{v2: v2}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return cgroups{}, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != "unified" {
			found.v1 = append(found.v1, filepath.Join(cgroupMount, e.Name()))
		}
	}
	return found, nil
}

// cgroupName is the lab's cgroup below each hierarchy's root.
func (c Config) cgroupName() string { return "clustermesh-lab-" + c.Name }

// make creates path (relative, its parents included) in every hierarchy, usable
// for a kubelet.
func (g cgroups) make(path string) error {
	for _, root := range g.v1 {
		if err := os.MkdirAll(filepath.Join(root, path), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if filepath.Base(root) == "cpuset" {
			if err := inheritCpuset(root, path); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(g.v2, path), 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if len(g.v1) > 0 {
		return nil
	}
	return g.enableControllers(path)
}

// inheritCpuset fills the cpusets down to path, which begin empty and then let
// no process in.
func inheritCpuset(root, path string) error {
	dir := root
	for _, part := range strings.Split(path, "/") {
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return fmt.Errorf("read cpuset: %w", err)
			}
			if err := os.WriteFile(filepath.Join(dir, part, file), value, 0); err != nil {
				return fmt.Errorf("write cpuset: %w", err)
			}
		}
		dir = filepath.Join(dir, part)
	}
	return nil
}

// enableControllers hands the controllers that pods need down to path. A kubelet
// insists on every one of these that the machine has at all.
func (g cgroups) enableControllers(path string) error {
	present, err := controllers(g.v2)
	if err != nil {
		return err
	}
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "hugetlb", "io"} {
		if !slices.Contains(present, controller) {
			continue
		}
		dir := g.v2
		for _, part := range append(strings.Split(path, "/"), "") {
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
			if err != nil {
				return fmt.Errorf("enable cgroup controller %s in %s: %w (in a container, start it with a cgroup namespace of its own and no processes in its root)", controller, dir, err)
			}
			dir = filepath.Join(dir, part)
		}
	}
	return nil
}

func controllers(dir string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("read cgroup controllers: %w", err)
	}
	return strings.Fields(string(data)), nil
}

// processes lists the processes in and below path.
func (g cgroups) processes(path string) []int {
	var pids []int
	_ = filepath.WalkDir(filepath.Join(g.v2, path), func(file string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(file) != "cgroup.procs" {
			return nil
		}
		data, _ := os.ReadFile(file)
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// kill ends every process in and below path at once and waits until they are gone.
func (g cgroups) kill(ctx context.Context, path string) error {
	dir := filepath.Join(g.v2, path)
	return poll(ctx, 20*time.Second, "the processes of cgroup "+path+" to end", func() (bool, error) {
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if strings.Contains(string(events), "populated 0") {
			return true, nil
		}
		// cgroup.kill is since Linux 5.14.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			for _, pid := range g.processes(path) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return false, nil
	})
}

// remove deletes path and all below it from every hierarchy.
func (g cgroups) remove(ctx context.Context, path string) error {
	for _, root := range append([]string{g.v2}, g.v1...) {
		dir := filepath.Join(root, path)
		// A cgroup whose last process has just died stays busy for a moment.
		err := poll(ctx, 10*time.Second, "cgroup "+dir+" to be removable", func() (bool, error) {
			return removeTree(dir) == nil, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

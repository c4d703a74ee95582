package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// toolPath is where programs of the machine are looked for. A PATH without the
// sbin directories, as su leaves it, must not make them missing.
const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tools are the programs of the machine a lab needs, and the Debian packages
// that have them.
func tools() []struct{ program, debian string } {
	return []struct{ program, debian string }{
		{"runc", "runc"},
		{"nft", "nftables"},
		{"conntrack", "conntrack"},
		{"ip", "iproute2"},
		{"nsenter", "util-linux"},
		{"unshare", "util-linux"},
		{"mount", "mount"},
	}
}

func findTool(program string) (string, error) {
	for _, dir := range filepath.SplitList(toolPath) {
		path := filepath.Join(dir, program)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: %w", program, toolPath, os.ErrNotExist)
}

// checkMachine says at once what would fail later, and what to do.
func checkMachine(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("start lab: it makes namespaces and mounts; run it as root")
	}
	for _, t := range tools() {
		if _, err := findTool(t.program); err != nil {
			return fmt.Errorf("start lab: the program %s is missing; install the Debian package %s (make lab-deps does)", t.program, t.debian)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make lab directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("check lab directory %s: %w", dir, err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("check lab directory %s: nodes need overlays, and it lies on one itself; set LAB_DIR to a directory on ext4, xfs or tmpfs", dir)
	}
	return nil
}

// allowWatches raises the one limit of the machine that labs run into: a cluster
// of two nodes takes 27 inotify instances of root's, and distributions allow 128.
func allowWatches(p *progress) error {
	const file, want = "/proc/sys/fs/inotify/max_user_instances", 1024
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read limit of inotify instances: %w", err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("read limit of inotify instances: %w", err)
	}
	if have >= want {
		return nil
	}
	p.step("raising fs.inotify.max_user_instances from %d to %d, until the machine restarts", have, want)
	if err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0); err != nil {
		return fmt.Errorf("raise limit of inotify instances: %w", err)
	}
	return nil
}

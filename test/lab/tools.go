package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// tool is a program of the machine and the Debian package that has it.
type tool struct{ program, debian string }

func tools() []tool {
	return []tool{
		{"runc", "runc"},
		{"nft", "nftables"},
		{"conntrack", "conntrack"},
		{"ip", "iproute2"},
		{"nsenter", "util-linux"},
		{"unshare", "util-linux"},
		{"busybox", "busybox-static"},
		{"mount", "mount"},
	}
}

// MissingPackages lists the Debian packages a lab needs and the machine lacks.
func MissingPackages() []string {
	var missing []string
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.debian)
		}
	}
	return missing
}

// checkMachine says at once what would fail later, and what to do.
func checkMachine(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("start lab: it makes namespaces and mounts; run it as root")
	}
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			return fmt.Errorf("start lab: the program %s is missing; install the Debian package %s (or run make lab-deps)", t.program, t.debian)
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

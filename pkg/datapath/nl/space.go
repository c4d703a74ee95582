// Package nl talks netlink in a given network namespace: many requests in one
// system call with an error for each, dumps that the kernel filters, and
// notifications. It knows nothing of what the messages mean to clustermesh.
//
// vishvananda/netlink covers devices; routes with a tunnel header, and ten
// thousand of them in one go with an answer for each, it cannot express.
package nl

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is a network namespace. The zero Space is the one of this process.
type Space struct{ fd int } // 0: this process's

// SpaceFd returns the namespace that fd refers to. The caller keeps fd open.
func SpaceFd(fd int) Space { return Space{fd} }

// Fd is the descriptor of the namespace, 0 for that of this process.
func (s Space) Fd() int { return s.fd }

// Do runs f on a thread that is in the namespace.
func (s Space) Do(f func() error) error {
	if s.fd == 0 {
		return f()
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("get network namespace: %w", err)
	}
	defer home.Close()
	if err := netns.Set(netns.NsHandle(s.fd)); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	result := f()
	if err := netns.Set(home); err != nil {
		return fmt.Errorf("leave network namespace: %w", err) // the locked thread dies with its goroutine
	}
	runtime.UnlockOSThread()
	return result
}

// Handle returns a handle for devices and addresses. The caller closes it.
func (s Space) Handle() (*netlink.Handle, error) { return s.HandleOf() }

// HandleOf returns a handle for netlink protocols, of all if none is named. The
// caller closes it.
func (s Space) HandleOf(protocols ...int) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := s.Do(func() (err error) {
		h, err = netlink.NewHandle(protocols...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink handle: %w", err)
	}
	return h, nil
}

// ReadSysctl returns a setting of the namespace, by its path below /proc/sys.
func (s Space) ReadSysctl(path string) (string, error) {
	var b []byte
	err := s.Do(func() (err error) {
		b, err = os.ReadFile(filepath.Join("/proc/sys", path))
		return err
	})
	return strings.TrimSpace(string(b)), err
}

// WriteSysctl changes a setting of the namespace.
func (s Space) WriteSysctl(path, value string) error {
	return s.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644)
	})
}

// NetnsCookie identifies the network namespace of the calling thread
// (SO_NETNS_COOKIE, socket(7), since Linux 5.14).
func NetnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the cookie of the network namespace: %w", err)
	}
	return cookie, nil
}

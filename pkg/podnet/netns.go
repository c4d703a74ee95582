package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// inNS runs f on a thread that is in the network namespace. Only what looks at
// the calling thread (/proc/sys/net) needs it; netlink has sockets for that.
func inNS(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		old, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("get network namespace: %w", err)
			return
		}
		defer old.Close()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- f()
		// A thread that cannot come back stays locked and ends with this
		// goroutine, so that no other goroutine gets it.
		if netns.Set(old) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}

// dupNS returns a handle of its own to the namespace behind fd.
func dupNS(fd int) (netns.NsHandle, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return netns.NsHandle(n), err
}

// openPodNS returns the pod's network namespace: the one that the plugin
// passed, else the one at path.
func (s *Server) openPodNS(passed *os.File, path string) (netns.NsHandle, error) {
	ns, err := openNS(passed, path)
	if err != nil {
		return netns.None(), refuse(api.CodeNetNS, "check that the sandbox still runs", "open network namespace %q: %v", path, err)
	}
	if ns.Equal(s.hostNS) {
		return netns.None(), errors.Join(ns.Close(), refuse(api.CodeNetNS,
			"pods with hostNetwork have no CNI attachment; check CNI_NETNS",
			"network namespace %q is the node's own", path))
	}
	return ns, nil
}

func openNS(passed *os.File, path string) (netns.NsHandle, error) {
	var ns netns.NsHandle
	var err error
	if passed != nil {
		ns, err = dupNS(int(passed.Fd()))
	} else {
		ns, err = openPath(path)
	}
	if err != nil {
		return netns.None(), err
	}
	// What was not propagated into this mount namespace is an empty plain
	// file; setns would say no more than "invalid argument".
	kind, err := unix.IoctlRetInt(int(ns), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return netns.None(), errors.Join(errors.New("it is not a network namespace"), ns.Close())
	}
	return ns, nil
}

// openPath opens a namespace by path.
func openPath(path string) (netns.NsHandle, error) {
	if path == "" {
		return netns.None(), errors.New("CNI_NETNS is empty")
	}
	var first error
	for _, p := range candidates(path) {
		ns, err := netns.GetFromPath(p)
		if err == nil {
			return ns, nil
		}
		first = cmp.Or(first, err)
	}
	return netns.None(), first
}

// candidates are the places where path may be found. The agent's image has no
// /var/run, which is a link to /run on every host.
func candidates(path string) []string {
	out := []string{path}
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		out = append(out, "/run/"+rest)
	}
	return out
}

// ipv6Sysctls is missing where the kernel was booted without IPv6.
const ipv6Sysctls = "/proc/sys/net/ipv6"

// sysctl is a file under /proc/sys/net and what to write there.
type sysctl struct{ name, value string }

// setSysctls writes values in a namespace.
func setSysctls(ns netns.NsHandle, values []sysctl) error {
	if len(values) == 0 {
		return nil
	}
	return inNS(ns, func() error {
		for _, v := range values {
			if err := writeSysctl(v); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeSysctl(v sysctl) error {
	path := "/proc/sys/net/" + v.name
	err := os.WriteFile(path, []byte(v.value), 0)
	if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(v.name, "ipv6/") {
		if _, gone := os.Stat(ipv6Sysctls); gone != nil {
			return fmt.Errorf("set sysctl %s to %s: this kernel runs without IPv6 (boot it without ipv6.disable=1, or use an IPv4 pod CIDR only)", v.name, v.value)
		}
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", v.name, v.value, err)
	}
	return nil
}

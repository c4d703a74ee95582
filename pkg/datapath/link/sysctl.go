package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// Sysctls is the target for settings below /proc/sys. Settings belong to the
// whole node, so none is ever put back: who else relies on ip_forward we cannot
// know. List therefore tells only of those that were asked for.
type Sysctls struct {
	space nl.Space

	mu    sync.Mutex
	known map[string]bool // guarded by mu
}

// NewSysctls returns the target for the settings of a namespace.
func NewSysctls(space nl.Space) *Sysctls { return &Sysctls{space: space, known: map[string]bool{}} }

// List implements reconcile.Target.
func (s *Sysctls) List(context.Context) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for path := range s.known {
		value, err := s.space.ReadSysctl(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // of a device that is gone
		case err != nil:
			return nil, fmt.Errorf("read sysctl %s: %w", path, err)
		default:
			out[path] = value
		}
	}
	return out, nil
}

// Apply implements reconcile.Target. It reads before it writes: a written
// forwarding switch resets other settings of every device, even if unchanged.
func (s *Sysctls) Apply(_ context.Context, set map[string]string, del []string) map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := map[string]error{}
	for path, value := range set {
		s.known[path] = true
		if err := s.write(path, value); err != nil {
			failed[path] = fmt.Errorf("write sysctl %s = %s: %w", path, value, err)
		}
	}
	for _, path := range del {
		delete(s.known, path)
	}
	return failed
}

func (s *Sysctls) write(path, value string) error {
	current, err := s.space.ReadSysctl(path)
	if err != nil || current == value {
		return err
	}
	if path == "net/ipv6/conf/all/forwarding" && value == "1" {
		if err := s.keepAdvertisements(); err != nil {
			return err
		}
	}
	return s.space.WriteSysctl(path, value)
}

// Watch implements reconcile.Watcher: the kernel tells when somebody changes
// forwarding or rp_filter, and a device that is made anew has default settings.
func (s *Sysctls) Watch(ctx context.Context, wake func()) error {
	groups := []uint32{unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_LINK}
	return s.space.Watch(ctx, unix.NETLINK_ROUTE, groups, func(e nl.Event) {
		switch e.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if _, name, ok := nl.LinkName(e.Body); ok && s.concerns(name) {
				wake()
			}
		case unix.RTM_NEWNETCONF:
			if ofWatched(e.Body) {
				wake()
			}
		}
	}, wake)
}

// concerns tells whether there are settings of a device.
func (s *Sysctls) concerns(device string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.known {
		if strings.Contains(path, "/"+device+"/") {
			return true
		}
	}
	return false
}

// ofWatched tells whether a notification is of settings for the whole node.
// Pods come with settings of their own, one notification each.
func ofWatched(body []byte) bool {
	const sizeofNetconf = 4  // struct netconfmsg, padded
	const netconfIfindex = 1 // NETCONFA_IFINDEX
	const all = 0xffffffff   // NETCONFA_IFINDEX_ALL
	if len(body) < sizeofNetconf {
		return false
	}
	for typ, v := range nl.Each(body[sizeofNetconf:]) {
		if typ == netconfIfindex {
			return nl.U32Of(v) == all
		}
	}
	return false
}

// keepAdvertisements lets devices that take router advertisements go on doing
// so (accept_ra 2). A forwarding node ignores them otherwise, and a node that
// has its default route from them would lose it minutes later.
func (s *Sysctls) keepAdvertisements() error {
	var devices []os.DirEntry
	err := s.space.Do(func() (err error) {
		devices, err = os.ReadDir("/proc/sys/net/ipv6/conf")
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.Name() == "all" || d.Name() == "default" || d.Name() == "lo" {
			continue
		}
		path := "net/ipv6/conf/" + d.Name() + "/accept_ra"
		current, err := s.space.ReadSysctl(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && current != "1" {
			continue
		}
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", path, err)
		}
		if err := s.space.WriteSysctl(path, "2"); err != nil {
			return fmt.Errorf("write sysctl %s = 2: %w", path, err)
		}
	}
	return nil
}

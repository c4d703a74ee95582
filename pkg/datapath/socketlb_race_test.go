package datapath_test

import (
	"bytes"
	"context"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestSocketLBReplaced (invariant V8): while elements are replaced, the kernel
// gives the memory of one to another; no socket goes to another front's backend
// by that. Without the second look of leads and pick, one run in four failed.
func TestSocketLBReplaced(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, together(programs, udpTo(frontA, three[0]), udpTo(frontB, three[1])), nil)
	open := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.opt.Pins, name), nil)
		must(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	var writers sync.WaitGroup
	for _, name := range []string{"fronts", "slots"} { // of each, with the same values again and again
		m, elements := open(name), map[string][]byte{}
		var key, value []byte
		for all := m.Iterate(); all.Next(&key, &value); {
			elements[string(key)] = bytes.Clone(value)
		}
		writers.Go(func() {
			for ctx.Err() == nil {
				for k, v := range elements {
					if err := m.Put([]byte(k), v); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	connected, fd := open("connected"), s.socket(unix.AF_INET, unix.SOCK_DGRAM).fd
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	must(t, err)
	to, n := sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(frontA)), 0
	want := netip.MustParseAddrPort(three[0]).Addr().As4()
	for ; ctx.Err() == nil; n++ {
		must(t, unix.Connect(fd, to))
		var peer []byte // struct peer: front, backend
		if err := connected.Lookup(cookie, &peer); err == nil && [4]byte(peer[32:36]) != want {
			t.Errorf("after %d good ones, a socket was connected to %v, want %v", n, peer[32:36], want)
			break
		}
	}
	stop()
	writers.Wait()
	t.Logf("%d connects", n)
}

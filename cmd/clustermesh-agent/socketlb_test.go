package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

// fastLayer is the agent as far as its sockets go.
type fastLayer struct {
	t      *testing.T
	opt    options
	events []string
	*services
}

func newFastLayer(t *testing.T) *fastLayer {
	if os.Getuid() != 0 {
		t.Skip("needs root for cgroups and mounts")
	}
	f := &fastLayer{t: t, opt: options{cgroup: testutil.InCgroup(t), pins: filepath.Join(testutil.BPFFS(t), "socketlb")}}
	t.Cleanup(func() { _ = socketlb.Remove(f.opt.pins) })
	f.services = &services{log: slog.New(slog.DiscardHandler), board: status.NewBoard(time.Now), change: &fanout{},
		event: func(reason, message string) { f.events = append(f.events, reason+": "+message) },
		cfg:   config.Config{Services: config.Services{KubeProxy: config.KubeProxyReplace, SocketLB: config.SocketLBAll}}}
	return f
}

// with runs an agent's sockets while do does something.
func (f *fastLayer) with(do func(*sockets)) {
	f.t.Helper()
	x, err := f.newSockets(f.opt, reconcile.Options{Board: f.board})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(f.t.Context())
	done := make(chan error)
	go func() { done <- x.run(ctx) }()
	do(x)
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		f.t.Errorf("run ended with %v", err)
	}
}

// line waits for what the board says of sockets.
func (f *fastLayer) line() string {
	for range 500 {
		for _, l := range f.board.Lines() {
			if l.Key == socketsKey {
				return fmt.Sprintf("%s: %s | %s", l.Level, l.Message, l.Remedy)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "nothing"
}

const alone = "; Services go through nftables alone | "

// TestNoSocketLB: a node that can't have it runs on nftables alone, and says why.
func TestNoSocketLB(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(*fastLayer)
		want string // with the directories' names in place of C and P
	}{
		{"switched off", func(f *fastLayer) { f.cfg.Services.SocketLB = config.SocketLBOff }, "info: off: the configuration says so" + alone},
		{"kube-proxy kept", func(f *fastLayer) { f.cfg.Services.KubeProxy = config.KubeProxyKeep }, "info: off: the configuration says so" + alone},
		{"no cgroup", func(f *fastLayer) { f.opt.cgroup = filepath.Join(t.TempDir(), "none") },
			"info: off: C/unified is no version 2 cgroup" + alone + "boot with cgroup v2, or set pods.agent.cgroupRoot to where it is mounted"},
		{"another file system", func(f *fastLayer) {
			f.opt.cgroup = t.TempDir()
			f.mount("tmpfs", f.opt.cgroup, 0)
			f.write(filepath.Join(f.opt.cgroup, "cgroup.procs"))
		}, "info: off: C is no version 2 cgroup" + alone + "boot with cgroup v2, or set pods.agent.cgroupRoot to where it is mounted"},
		{"no BPF file system", func(f *fastLayer) { f.opt.pins = filepath.Join(t.TempDir(), "bpf", "socketlb") },
			"info: off: P is in no BPF file system" + alone + "mount one on the node: mount -t bpf bpf /sys/fs/bpf"},
		{"read only", func(f *fastLayer) { f.mount("", filepath.Dir(f.opt.pins), unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY) },
			"info: off: D can't be written to: read-only file system" + alone + "mount the BPF file system writable: mount -o remount,rw /sys/fs/bpf"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFastLayer(t)
			tt.make(f)
			f.with(func(x *sockets) {
				want := strings.NewReplacer(" C", " "+f.opt.cgroup, " P ", " "+f.opt.pins+" ", " D ", " "+filepath.Dir(f.opt.pins)+" ").Replace(tt.want)
				if got := f.line(); got != want {
					t.Errorf("status is\n%s\nwant\n%s", got, want)
				}
				if err := x.sync(t.Context()); err != nil {
					t.Error(err)
				}
				if n, err := x.cut(nil); n != 0 || err != nil {
					t.Errorf("%d sockets cut: %v", n, err)
				}
			})
		})
	}
}

func (f *fastLayer) mount(kind, at string, flags uintptr) {
	f.t.Helper()
	if err := unix.Mount(kind, at, kind, flags, ""); err != nil {
		f.t.Fatal(err)
	}
	if flags&unix.MS_REMOUNT == 0 {
		f.t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
}

func (f *fastLayer) write(file string) {
	f.t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// TestNoSocketLBKernel: the same with a kernel that does not take the programs.
// The test runs once more in a process of its own, which a filter of system calls
// keeps from loading any: the BPF library remembers what it has found out.
func TestNoSocketLBKernel(t *testing.T) {
	const child = "CLUSTERMESH_TEST_OLD_KERNEL"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	f := newFastLayer(t)
	noPrograms(t)
	f.with(func(*sockets) {
		got := f.line()
		if !strings.HasPrefix(got, "info: off: the kernel refuses the programs: ") || !strings.HasSuffix(got, alone+"use Linux 5.15 or later with CONFIG_CGROUP_BPF") {
			t.Errorf("status is %s", got)
		}
	})
}

// noPrograms makes bpf(BPF_PROG_LOAD) fail with EINVAL, which is what a kernel
// says to a kind of program that it does not have (seccomp(2)).
func noPrograms(t *testing.T) {
	const load, allow, errno, setFilter, allThreads = 5, 0x7fff0000, 0x00050000, 1, 1
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	word, equal := uint16(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS), uint16(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K)
	filter := []unix.SockFilter{
		{Code: word, K: 0}, // number of the call
		{Code: equal, K: unix.SYS_BPF, Jf: 3},
		{Code: word, K: 16}, // its first argument, on little-endian machines
		{Code: equal, K: load, Jf: 1},
		{Code: unix.BPF_RET, K: errno | uint32(unix.EINVAL)},
		{Code: unix.BPF_RET, K: allow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, setFilter, allThreads, uintptr(unsafe.Pointer(&program))); err != 0 {
		t.Fatal(err)
	}
}

// TestSocketLBOff: what an agent has put in, one with services.socketLB=off takes
// out.
func TestSocketLBOff(t *testing.T) {
	f := newFastLayer(t)
	at := netip.MustParseAddrPort("10.96.0.1:80")
	slots, _ := service.Spread([]service.Backend{{AddrPort: netip.MustParseAddrPort("10.1.0.1:80"), Weight: 1}})
	f.with(func(x *sockets) {
		x.update(map[service.FrontKey]service.Front{{}: {}, {Addr: at.Addr(), Port: at.Port(), Protocol: unix.IPPROTO_TCP}: {Slots: slots}}, nil)
		if err := x.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.line(); got != "ok: 2 rows | " {
			t.Errorf("status is %s", got)
		}
	})
	if n := f.programs(); n != 1 {
		t.Errorf("%d programs look at what connects, want 1", n)
	}
	f.cfg.Services.SocketLB = config.SocketLBOff
	f.board.Clear(socketsKey)
	f.with(func(*sockets) {
		if got := f.line(); got != "info: off: the configuration says so"+alone {
			t.Errorf("status is %s", got)
		}
	})
	for range 500 { // the kernel takes its time to let go of what is unpinned
		if f.programs() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := f.programs(); n != 0 {
		t.Errorf("%d programs look at what connects, want none", n)
	}
	if _, err := os.Lstat(f.opt.pins); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", f.opt.pins, err)
	}
}

func (f *fastLayer) programs() int {
	f.t.Helper()
	dir, err := os.Open(f.opt.cgroup)
	if err != nil {
		f.t.Fatal(err)
	}
	defer dir.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		f.t.Fatal(err)
	}
	return len(found.Programs)
}

// TestSocketLBOffLeft: programs of before that can't be removed are told of.
func TestSocketLBOffLeft(t *testing.T) {
	f := newFastLayer(t)
	f.with(func(x *sockets) {
		x.update(map[service.FrontKey]service.Front{{}: {}}, nil)
		_ = x.sync(t.Context())
	})
	f.mount("", filepath.Dir(f.opt.pins), unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY)
	defer f.mount("", filepath.Dir(f.opt.pins), unix.MS_REMOUNT|unix.MS_BIND)
	f.board.Clear(socketsKey)
	f.with(func(*sockets) {
		if got := f.line(); !strings.HasPrefix(got, "degraded: off: ") || !strings.HasSuffix(got, "read-only file system | remove "+f.opt.pins+" on the node") {
			t.Errorf("status is %s", got)
		}
	})
}

// TestSocketLBTells: full maps, and sockets that can't be ended, show where people
// look, and go when that is over.
func TestSocketLBTells(t *testing.T) {
	f := newFastLayer(t)
	x, err := f.newSockets(f.opt, reconcile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	x.room(2, errors.New("a map is full"))
	x.room(3, errors.New("a map is full"))
	if err := x.ended(fmt.Errorf("end socket: %w", socketlb.ErrCantEnd)); err != nil {
		t.Errorf("tried again: %v", err)
	}
	var got []string
	for _, l := range f.board.Lines() {
		got = append(got, fmt.Sprintf("%s %s: %s", l.Level, l.Object, l.Message))
	}
	want := []string{"degraded maps: 3 addresses of Services are left to nftables: a map is full", "degraded stale UDP sockets: end socket: " + socketlb.ErrCantEnd.Error()}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("status is %q, want %q", got, want)
	}
	if len(f.events) != 1 || f.events[0] != "SocketLBFull: 2 addresses of Services are left to nftables: a map is full" || x.left.Load() != 3 {
		t.Errorf("events %q, metric %d", f.events, x.left.Load())
	}
	x.room(0, nil)
	if err := x.ended(nil); err != nil || len(f.board.Lines()) > 0 || x.left.Load() != 0 {
		t.Errorf("still told: %v %v", err, f.board.Lines())
	}
}

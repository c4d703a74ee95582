package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

// sockets is a namespace with backends, and this process in a cgroup whose
// sockets are balanced.
type sockets struct {
	t      testing.TB
	space  nl.Space
	opt    socketlb.Options
	target *socketlb.Target
}

func newSockets(t testing.TB) *sockets {
	space := newSpace(t)
	addr(t, space, "lo", "10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32", "fd00:1::1/128", "fd00:1::2/128")
	s := &sockets{t: t, space: space, opt: socketlb.Options{Cgroup: testutil.InCgroup(t), Pins: filepath.Join(testutil.BPFFS(t), "clustermesh", "socketlb")}}
	must(t, socketlb.Supported(s.opt))
	s.restart()
	t.Cleanup(func() { must(t, socketlb.Remove(s.opt.Pins)) })
	return s
}

// restart is what a new agent does first.
func (s *sockets) restart() {
	s.t.Helper()
	target, err := socketlb.New(s.opt)
	must(s.t, err)
	s.target = target
	_, err = target.List(s.t.Context())
	must(s.t, err)
}

// serve answers at an address with that address, to whatever comes.
func (s *sockets) serve(at string) {
	s.t.Helper()
	must(s.t, s.space.Do(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		var done sync.WaitGroup
		s.t.Cleanup(func() { l.Close(); p.Close(); done.Wait() })
		done.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(at))
				c.Close()
			}
		})
		done.Go(func() {
			b := make([]byte, 100)
			for {
				_, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo([]byte(at), from)
			}
		})
		return nil
	}))
}

// socket is one of the namespace.
type socket struct {
	t     testing.TB
	space nl.Space
	fd    int
}

func (s *sockets) socket(family, kind int) *socket {
	s.t.Helper()
	var fd int
	must(s.t, s.space.Do(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	c := &socket{s.t, s.space, fd}
	s.t.Cleanup(c.close)
	must(s.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	return c
}

// close may be called twice: by then the number may be another file's.
func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// sockaddrOf is a for a socket of a family: IPv4 in an IPv6 one is mapped.
func sockaddrOf(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (s *socket) read() (string, netip.AddrPort) {
	s.t.Helper()
	b := make([]byte, 100)
	n, from, err := unix.Recvfrom(s.fd, b, 0)
	must(s.t, err)
	return string(b[:n]), addrPortOf(from)
}

func (s *socket) peer() netip.AddrPort {
	s.t.Helper()
	sa, err := unix.Getpeername(s.fd)
	must(s.t, err)
	return addrPortOf(sa)
}

// connect makes a TCP connection and returns who answered.
func (s *sockets) connect(family int, to string) (string, *socket) {
	s.t.Helper()
	c := s.socket(family, unix.SOCK_STREAM)
	must(s.t, unix.Connect(c.fd, sockaddrOf(family, netip.MustParseAddrPort(to))))
	who, _ := c.read()
	return who, c
}

func frontAt(at string, protocol uint8) service.FrontKey {
	a := netip.MustParseAddrPort(at)
	return service.FrontKey{Addr: a.Addr(), Port: a.Port(), Protocol: protocol}
}

func frontTo(backends ...string) service.Front {
	var list []service.Backend
	for _, b := range backends {
		list = append(list, service.Backend{AddrPort: netip.MustParseAddrPort(b), Weight: 1})
	}
	slots, _ := service.Spread(list)
	return service.Front{Slots: slots}
}

func TestContractSocketLB(t *testing.T) {
	four, six, dns := frontAt("10.96.0.1:80", unix.IPPROTO_TCP), frontAt("[fd00:96::1]:80", unix.IPPROTO_TCP), frontAt("10.96.0.1:53", unix.IPPROTO_UDP)
	alike := frontAt("10.96.0.2:80", unix.IPPROTO_TCP)
	stays := frontTo("10.1.0.1:80", "10.1.0.2:80")
	stays.AffinitySeconds = 10
	contract(t, func(t *testing.T) reconcile.Target[service.FrontKey, service.Front] { return newSockets(t).target },
		map[service.FrontKey]service.Front{four: frontTo("10.1.0.1:80", "10.1.0.2:80"), alike: frontTo("10.1.0.1:80", "10.1.0.2:80"),
			six: frontTo("[fd00:1::1]:80"), dns: frontTo("10.1.0.1:53")},
		map[service.FrontKey]service.Front{four: frontTo("10.1.0.3:80"), alike: stays,
			six: frontTo("[fd00:1::1]:80", "[fd00:1::2]:80"), dns: frontTo("10.1.0.1:53", "10.1.0.2:53")})
}

var programs = map[service.FrontKey]service.Front{{}: {}}

func together(rows ...map[service.FrontKey]service.Front) map[service.FrontKey]service.Front {
	out := map[service.FrontKey]service.Front{}
	for _, r := range rows {
		maps.Copy(out, r)
	}
	return out
}

// TestSocketLB sends sockets of all kinds to Services. Nothing but the programs
// knows the Services' addresses.
func TestSocketLB(t *testing.T) {
	s := newSockets(t)
	backends := map[int][]string{unix.AF_INET: {"10.1.0.1:80", "10.1.0.2:80"}, unix.AF_INET6: {"[fd00:1::1]:80", "[fd00:1::2]:80"}}
	for _, list := range backends {
		for _, b := range list {
			s.serve(b)
		}
	}
	rows := map[service.FrontKey]service.Front{}
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		rows[frontAt("10.96.0.1:8080", protocol)] = frontTo(backends[unix.AF_INET]...)
		rows[frontAt("[fd00:96::1]:8080", protocol)] = frontTo(backends[unix.AF_INET6]...)
	}
	put(t, s.target, together(rows, programs), nil)
	shows(t, s.target, together(rows, programs))
	for _, tt := range []struct {
		name, front string
		family, of  int // the socket's, and that of the addresses
	}{
		{"IPv4", "10.96.0.1:8080", unix.AF_INET, unix.AF_INET},
		{"IPv6", "[fd00:96::1]:8080", unix.AF_INET6, unix.AF_INET6},
		{"IPv4 mapped", "10.96.0.1:8080", unix.AF_INET6, unix.AF_INET},
	} {
		front := netip.MustParseAddrPort(tt.front)
		t.Run(tt.name+" TCP", func(t *testing.T) {
			seen := map[string]int{}
			for range 100 {
				who, c := s.connect(tt.family, tt.front)
				seen[who]++
				if c.peer() != front {
					t.Fatalf("peer is %v, want %v", c.peer(), front)
				}
			}
			for _, b := range backends[tt.of] {
				if seen[b] < 25 {
					t.Errorf("of 100 connections %v", seen)
				}
			}
		})
		t.Run(tt.name+" UDP connected", func(t *testing.T) {
			c := s.socket(tt.family, unix.SOCK_DGRAM)
			must(t, unix.Connect(c.fd, sockaddrOf(tt.family, front)))
			first := ""
			for range 10 {
				must(t, unix.Send(c.fd, []byte("x"), 0))
				who, from := c.read()
				if first == "" {
					first = who
				}
				if who != first || from != front || c.peer() != front {
					t.Fatalf("%s from %v, peer %v; want %s from %v", who, from, c.peer(), first, front)
				}
			}
		})
		t.Run(tt.name+" UDP not connected", func(t *testing.T) {
			seen := map[string]bool{}
			for range 20 {
				c, first := s.socket(tt.family, unix.SOCK_DGRAM), ""
				for range 5 { // parts of one conversation
					must(t, unix.Sendto(c.fd, []byte("x"), 0, sockaddrOf(tt.family, front)))
					who, from := c.read()
					if first == "" {
						first = who
					}
					if who != first || from != front {
						t.Fatalf("%s from %v, want %s from %v", who, from, first, front)
					}
				}
				seen[first] = true
				// To the backend itself it speaks as to anybody.
				direct := netip.MustParseAddrPort(first)
				must(t, unix.Sendto(c.fd, []byte("x"), 0, sockaddrOf(tt.family, direct)))
				if _, from := c.read(); from != direct {
					t.Fatalf("%v answers, want %v", from, direct)
				}
			}
			if len(seen) != 2 {
				t.Errorf("20 sockets went to %v", seen)
			}
		})
	}
	t.Run("connected again, to a backend itself", func(t *testing.T) {
		c := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
		must(t, unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:8080"))))
		must(t, unix.Send(c.fd, []byte("x"), 0))
		who, _ := c.read()
		must(t, unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(who))))
		if c.peer().String() != who {
			t.Errorf("peer is %v, want %s", c.peer(), who)
		}
	})
	t.Run("not a front", func(t *testing.T) {
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM)
		if err := unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:8081"))); err == nil {
			t.Error("connected")
		}
		if who, _ := s.connect(unix.AF_INET, "10.1.0.1:80"); who != "10.1.0.1:80" {
			t.Error(who)
		}
	})
}

// TestSocketLBStays: with session affinity a client stays with its backend as
// long as that is one, and so do the datagrams of a socket.
func TestSocketLBStays(t *testing.T) {
	s := newSockets(t)
	all := []string{"10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"}
	for _, b := range all {
		s.serve(b)
	}
	tcp, udp := frontAt("10.96.0.1:80", unix.IPPROTO_TCP), frontAt("10.96.0.1:80", unix.IPPROTO_UDP)
	rows := func(backends ...string) map[service.FrontKey]service.Front {
		f := frontTo(backends...)
		f.AffinitySeconds = 2
		return together(programs, map[service.FrontKey]service.Front{tcp: f, udp: frontTo(backends...)})
	}
	put(t, s.target, rows(all...), nil)
	first, _ := s.connect(unix.AF_INET, "10.96.0.1:80")
	c := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
	send := func() string {
		must(t, unix.Sendto(c.fd, []byte("x"), 0, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))))
		who, _ := c.read()
		return who
	}
	talker := send()
	check := func(when string) {
		t.Helper()
		for range 10 {
			if who, _ := s.connect(unix.AF_INET, "10.96.0.1:80"); who != first {
				t.Fatalf("%s: %s, want %s", when, who, first)
			}
			if who := send(); who != talker {
				t.Fatalf("%s: datagram to %s, want %s", when, who, talker)
			}
		}
	}
	check("at first")
	put(t, s.target, rows(first, talker), nil)
	check("when others went")
	s.restart()
	put(t, s.target, rows(all...), nil)
	check("when others came, and a new agent")

	others := slices.DeleteFunc(slices.Clone(all), func(b string) bool { return b == first || b == talker })
	put(t, s.target, rows(others...), nil)
	if who, _ := s.connect(unix.AF_INET, "10.96.0.1:80"); !slices.Contains(others, who) {
		t.Errorf("connected to %s, which is none any more", who)
	}
	if who := send(); !slices.Contains(others, who) {
		t.Errorf("datagram to %s, which is none any more", who)
	}
}

// TestSocketLBStaysFor: a client stays for as long as it is told to. That all of
// 20 fronts lead where they led before has a chance of one in 3^20.
func TestSocketLBStaysFor(t *testing.T) {
	s := newTalkers(t)
	rows, first := together(programs), map[string]string{}
	for port := range 20 {
		at := fmt.Sprintf("10.96.0.1:%d", 1000+port)
		f := frontTo(three...)
		f.AffinitySeconds = 1
		rows[frontAt(at, unix.IPPROTO_TCP)], first[at] = f, ""
	}
	put(t, s.target, rows, nil)
	moved := func() (n int) {
		for at, was := range first {
			if first[at], _ = s.connect(unix.AF_INET, at); first[at] != was {
				n++
			}
		}
		return n
	}
	moved()
	for range 4 { // each connection begins the time anew
		time.Sleep(500 * time.Millisecond) // real: the kernel's clock
		if n := moved(); n > 0 {
			t.Fatalf("within their time %d of 20 clients went elsewhere", n)
		}
	}
	time.Sleep(1100 * time.Millisecond)
	if moved() == 0 {
		t.Error("all 20 clients stayed beyond their time")
	}
}

// TestSocketLBRestart (invariants R1, V5): a new agent takes over what is there,
// and no connection fails meanwhile.
func TestSocketLBRestart(t *testing.T) {
	s := newSockets(t)
	s.serve("10.1.0.1:80")
	rows := together(programs, map[service.FrontKey]service.Front{frontAt("10.96.0.1:80", unix.IPPROTO_TCP): frontTo("10.1.0.1:80")})
	put(t, s.target, rows, nil)
	_, old := s.connect(unix.AF_INET, "10.96.0.1:80")

	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	n := 0
	load.Go(func() {
		for ; ctx.Err() == nil; n++ {
			s.connect(unix.AF_INET, "10.96.0.1:80")
		}
	})
	for range 5 {
		s.restart()
		want := maps.Clone(rows)
		delete(want, service.FrontKey{}) // its programs are another's
		shows(t, s.target, want)
		put(t, s.target, programs, nil)
		shows(t, s.target, rows)
	}
	stop()
	load.Wait()
	if n < 5 {
		t.Errorf("%d connections in all", n)
	}
	if at := netip.MustParseAddrPort("10.96.0.1:80"); old.peer() != at {
		t.Errorf("a connection of before has peer %v, want %v", old.peer(), at)
	}
}

// TestSocketLBOtherVersion (invariant V8): an agent puts its own in the place of
// what one of another version has left, and takes out what it does not know:
// nobody would keep it right.
func TestSocketLBOtherVersion(t *testing.T) {
	s := newSockets(t)
	s.serve("10.1.0.1:80")
	rows := together(programs, map[service.FrontKey]service.Front{frontAt("10.96.0.1:80", unix.IPPROTO_TCP): frontTo("10.1.0.1:80")})
	put(t, s.target, rows, nil)
	pin := func(name string) string { return filepath.Join(s.opt.Pins, name) }
	for _, name := range []string{"fronts", "kept"} { // other sizes
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 7})
		must(t, err)
		must(t, os.Remove(pin(name)))
		must(t, m.Pin(pin(name)))
		must(t, m.Close())
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 7})
	must(t, err)
	must(t, m.Pin(pin("unheard_of")))
	must(t, m.Close())
	allow, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInetSockCreate, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	must(t, err)
	l, err := link.AttachCgroup(link.CgroupOptions{Path: s.opt.Cgroup, Attach: ebpf.AttachCGroupInetSockCreate, Program: allow})
	must(t, err)
	must(t, l.Pin(pin("create")))
	must(t, errors.Join(l.Close(), allow.Close()))

	s.restart()
	shows(t, s.target, nil)
	put(t, s.target, rows, nil)
	shows(t, s.target, rows)
	s.connect(unix.AF_INET, "10.96.0.1:80")
	for _, name := range []string{"unheard_of", "create"} {
		if _, err := os.Lstat(pin(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// TestSocketLBCantReplace (invariant V8): programs of before that can't be
// replaced go, if their maps are not those that are kept right.
func TestSocketLBCantReplace(t *testing.T) {
	for _, tt := range []struct {
		name string
		lost []string // pins
		want string   // who answers: the backend, or what nftables would send to
	}{
		{"the same maps", nil, three[0]},
		{"other maps", []string{"fronts", "slots"}, frontA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTalkers(t)
			rows := together(programs, map[service.FrontKey]service.Front{frontAt(frontA, unix.IPPROTO_TCP): frontTo(three[0])})
			put(t, s.target, rows, nil)
			for _, name := range tt.lost {
				must(t, os.Remove(filepath.Join(s.opt.Pins, name)))
			}
			s.opt.Cgroup = t.TempDir() // is none, so nothing can be attached
			s.restart()
			for range 2 {
				if failed := s.target.Apply(t.Context(), rows, nil); len(failed) != 1 || failed[service.FrontKey{}] == nil {
					t.Errorf("%v failed, want the programs", failed)
				}
			}
			if who, _ := s.connect(unix.AF_INET, frontA); who != tt.want {
				t.Errorf("%s answers, want %s", who, tt.want)
			}
		})
	}
}

// TestSocketLBMeddling (invariant R5): what others do to maps and pins is found
// out and undone.
func TestSocketLBMeddling(t *testing.T) {
	s := newSockets(t)
	s.serve("10.1.0.1:80")
	rows := together(programs, map[service.FrontKey]service.Front{frontAt("10.96.0.1:80", unix.IPPROTO_TCP): frontTo("10.1.0.1:80"),
		frontAt("10.96.0.1:53", unix.IPPROTO_UDP): frontTo("10.1.0.1:53")})
	put(t, s.target, rows, nil)
	for _, name := range []string{"fronts", "slots", "members", "connect4", "sent"} {
		must(t, os.Remove(filepath.Join(s.opt.Pins, name)))
		got, err := s.target.List(t.Context())
		must(t, err)
		set, del := reconcile.Delta(got, rows)
		if len(set) == 0 {
			t.Errorf("without %s nothing was missed", name)
		}
		put(t, s.target, set, del)
		shows(t, s.target, rows)
		s.connect(unix.AF_INET, "10.96.0.1:80")
	}
	put(t, s.target, nil, []service.FrontKey{{}})
	shows(t, s.target, nil)
	if left, err := os.ReadDir(filepath.Dir(s.opt.Pins)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	c := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))); err == nil {
		t.Error("still connects to a Service")
	}
}

// TestSocketLBOnly serves the sockets of one namespace.
func TestSocketLBOnly(t *testing.T) {
	s := newSockets(t)
	s.serve("10.1.0.1:80")
	other := newSpace(t)
	cookie := func(space nl.Space) (c uint64) {
		must(t, space.Do(func() (err error) { c, err = nl.NetnsCookie(); return err }))
		return c
	}
	s.opt.OnlyNetns = cookie(other)
	s.restart()
	rows := together(programs, map[service.FrontKey]service.Front{frontAt("10.96.0.1:80", unix.IPPROTO_TCP): frontTo("10.1.0.1:80")})
	put(t, s.target, rows, nil)
	c := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort("10.96.0.1:80"))); err == nil {
		t.Error("a socket of another namespace was served")
	}
	s.opt.OnlyNetns = cookie(s.space)
	s.restart()
	put(t, s.target, rows, nil)
	s.connect(unix.AF_INET, "10.96.0.1:80")
}

// TestSocketLBStale (invariant V5): connected UDP sockets whose backend is gone
// are ended, and no other.
func TestSocketLBStale(t *testing.T) {
	s := newSockets(t)
	for _, b := range []string{"10.1.0.1:80", "10.1.0.2:80", "[fd00:1::1]:80", "[fd00:1::2]:80"} {
		s.serve(b)
	}
	four, six := frontAt("10.96.0.1:80", unix.IPPROTO_UDP), frontAt("[fd00:96::1]:80", unix.IPPROTO_UDP)
	put(t, s.target, together(programs, map[service.FrontKey]service.Front{four: frontTo("10.1.0.1:80"), six: frontTo("[fd00:1::1]:80")}), nil)
	open := func(family int, to string) *socket {
		c := s.socket(family, unix.SOCK_DGRAM)
		must(t, unix.Connect(c.fd, sockaddrOf(family, netip.MustParseAddrPort(to))))
		return c
	}
	gone := map[string]*socket{"IPv4": open(unix.AF_INET, "10.96.0.1:80"), "IPv6": open(unix.AF_INET6, "[fd00:96::1]:80"), "mapped": open(unix.AF_INET6, "10.96.0.1:80")}
	direct := open(unix.AF_INET, "10.1.0.1:80")
	rows := map[service.FrontKey]service.Front{four: frontTo("10.1.0.2:80"), six: frontTo("[fd00:1::2]:80")}
	put(t, s.target, rows, nil)
	stays := open(unix.AF_INET, "10.96.0.1:80")
	cut := func(want int) {
		t.Helper()
		if n, err := socketlb.CutStale(s.opt.Pins, rows, slices.Values([]nl.Space{newSpace(t), s.space})); err != nil || n != want {
			t.Fatalf("%d sockets ended, want %d: %v", n, want, err)
		}
	}
	cut(3)
	cut(0)
	for name, c := range gone {
		if _, err := unix.Write(c.fd, []byte("x")); err != unix.ECONNABORTED && err != unix.EDESTADDRREQ {
			t.Errorf("%s: write says %v", name, err)
		}
	}
	for who, c := range map[string]*socket{"10.1.0.1:80": direct, "10.1.0.2:80": stays} {
		must(t, unix.Send(c.fd, []byte("x"), 0))
		if got, _ := c.read(); got != who {
			t.Errorf("%s answers, want %s", got, who)
		}
	}
	rows = nil // the Services are gone
	closed := open(unix.AF_INET, "10.96.0.1:80")
	closed.close()
	cut(1)
}

package datapath_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/service"
)

const (
	frontA = "10.96.0.1:80"
	frontB = "10.96.0.2:80"
)

// newTalkers is a namespace with three backends and two fronts, whose addresses
// are served there as well: who answers with a front's address was left to
// nftables.
func newTalkers(t *testing.T) *sockets {
	s := newSockets(t)
	addr(t, s.space, "lo", "10.96.0.1/32", "10.96.0.2/32")
	for _, at := range []string{frontA, frontB, "10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"} {
		s.serve(at)
	}
	return s
}

func udpTo(at string, backends ...string) map[service.FrontKey]service.Front {
	return map[service.FrontKey]service.Front{frontAt(at, unix.IPPROTO_UDP): frontTo(backends...)}
}

var three = []string{"10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"}

func (s *socket) connectTo(family int, to string) {
	s.t.Helper()
	must(s.t, unix.Connect(s.fd, sockaddrOf(family, netip.MustParseAddrPort(to))))
}

// ask sends a datagram, to where the socket is connected to if to is empty, and
// returns who answers and what he is named.
func (s *socket) ask(family int, to string) (who, name string) {
	s.t.Helper()
	if to == "" {
		must(s.t, unix.Send(s.fd, []byte("x"), 0))
	} else {
		must(s.t, unix.Sendto(s.fd, []byte("x"), 0, sockaddrOf(family, netip.MustParseAddrPort(to))))
	}
	who, from := s.read()
	return who, from.String()
}

func (s *socket) disconnect() {
	s.t.Helper()
	var unspec unix.RawSockaddr // AF_UNSPEC, udp(7)
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet4); errno != 0 {
		s.t.Fatal(errno)
	}
}

// TestSocketLBConnectedGivenAddress (invariant V8): a connected UDP socket takes
// answers from its peer alone, so what it sends to its front goes to the peer.
func TestSocketLBConnectedGivenAddress(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, together(programs, udpTo(frontA, three...)), nil)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		c := s.socket(family, unix.SOCK_DGRAM)
		c.connectTo(family, frontA)
		first, _ := c.ask(family, "")
		for range 20 {
			if who, name := c.ask(family, frontA); who != first || name != frontA {
				t.Fatalf("%s, named %s, answers; want %s, named %s", who, name, first, frontA)
			}
		}
	}
}

// TestSocketLBConnectedBefore (invariant V8): a UDP socket that was connected
// before its front was known stays with nftables.
func TestSocketLBConnectedBefore(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, programs, nil)
	open := map[int]*socket{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		open[family] = s.socket(family, unix.SOCK_DGRAM)
		open[family].connectTo(family, frontA)
	}
	put(t, s.target, udpTo(frontA, three...), nil)
	for family, c := range open {
		for _, to := range []string{"", frontA} {
			if who, name := c.ask(family, to); who != frontA || name != frontA {
				t.Errorf("%s, named %s, answers; want %s", who, name, frontA)
			}
		}
	}
}

// TestSocketLBTwoFronts (invariant V8): a socket that has answers from a backend
// by one front gets those by another one through nftables, since it could not
// tell them apart.
func TestSocketLBTwoFronts(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, together(programs, udpTo(frontA, three[0]), udpTo(frontB, three[0])), nil)
	c := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
	for range 3 {
		if who, name := c.ask(unix.AF_INET, frontA); who != three[0] || name != frontA {
			t.Errorf("%s, named %s, answers; want %s, named %s", who, name, three[0], frontA)
		}
		if who, name := c.ask(unix.AF_INET, frontB); who != frontB || name != frontB {
			t.Errorf("%s, named %s, answers; want %s", who, name, frontB)
		}
	}
	// Two datagrams before the first answer.
	must(t, unix.Sendto(c.fd, []byte("x"), 0, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(frontA))))
	must(t, unix.Sendto(c.fd, []byte("x"), 0, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(frontB))))
	names := map[string]bool{}
	for range 2 {
		_, from := c.read()
		names[from.String()] = true
	}
	if !names[frontA] || !names[frontB] {
		t.Errorf("answers of %v", names)
	}
}

// TestSocketLBChain (invariants V6, V8): an address is translated once. A backend
// that is a front leads nowhere with nftables, and so it does here.
func TestSocketLBChain(t *testing.T) {
	s := newTalkers(t)
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		put(t, s.target, together(programs, map[service.FrontKey]service.Front{
			frontAt(frontA, protocol): frontTo(frontB), frontAt(frontB, protocol): frontTo(three[0])}), nil)
	}
	if who, _ := s.connect(unix.AF_INET, frontA); who != frontA {
		t.Errorf("TCP goes to %s, want %s", who, frontA)
	}
	if who, _ := s.socket(unix.AF_INET, unix.SOCK_DGRAM).ask(unix.AF_INET, frontA); who != frontA {
		t.Errorf("UDP goes to %s, want %s", who, frontA)
	}
	if who, _ := s.connect(unix.AF_INET, frontB); who != three[0] {
		t.Errorf("TCP goes to %s, want %s", who, three[0])
	}
}

// TestSocketLBGoesOn (invariant V5): whatever a UDP socket does, to one front it
// goes by one backend, as a flow in connection tracking would.
func TestSocketLBGoesOn(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, together(programs, udpTo(frontA, three...)), nil)
	for range 10 { // chance would have it once in 3^40
		c := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
		first, _ := c.ask(unix.AF_INET, frontA)
		for _, step := range []struct {
			name string
			do   func()
			to   string
		}{
			{"connected", func() { c.connectTo(unix.AF_INET, frontA) }, ""},
			{"connected again", func() { c.connectTo(unix.AF_INET, frontA) }, ""},
			{"disconnected", c.disconnect, frontA},
			{"connected after that", func() { c.connectTo(unix.AF_INET, frontA) }, ""},
		} {
			step.do()
			if who, name := c.ask(unix.AF_INET, step.to); who != first || name != frontA {
				t.Fatalf("%s: %s, named %s, answers; want %s, named %s", step.name, who, name, first, frontA)
			}
		}
	}
}

// TestSocketLBCutsConnected (invariant V5): a socket that is no more connected to
// the backend that is gone is left alone.
func TestSocketLBCutsConnected(t *testing.T) {
	s := newTalkers(t)
	put(t, s.target, together(programs, udpTo(frontA, three[0])), nil)
	open := map[string]*socket{}
	for name, then := range map[string]func(*socket){
		"disconnected": (*socket).disconnect,
		"to another":   func(c *socket) { c.connectTo(unix.AF_INET, three[1]) },
		"failed": func(c *socket) { // 10.1.0.9 is a backend that no route leads to
			c.disconnect()
			if err := unix.Connect(c.fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(frontB))); err == nil {
				t.Error("connected to a backend without a route")
			}
		},
	} {
		put(t, s.target, udpTo(frontB, "10.1.0.9:80"), nil)
		c := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
		c.connectTo(unix.AF_INET, frontA)
		then(c)
		open[name] = c
	}
	still := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
	still.connectTo(unix.AF_INET, frontA)
	put(t, s.target, udpTo(frontA, three[1]), nil)
	n, err := socketlb.CutStale(s.opt.Pins, udpTo(frontA, three[1]), slices.Values([]nl.Space{s.space}))
	if err != nil || n != 1 {
		t.Errorf("%d sockets ended, want 1: %v", n, err)
	}
	for name, c := range open {
		to := three[2]
		if name == "to another" {
			to = ""
		}
		if who, _ := c.ask(unix.AF_INET, to); to != "" && who != to {
			t.Errorf("%s: %s answers, want %s", name, who, to)
		}
	}
}

// TestSocketLBManyTalkers (invariant V8): datagrams of very many sockets don't
// make clients leave the backends that they stay with.
func TestSocketLBManyTalkers(t *testing.T) {
	s := newTalkers(t)
	rows, first := together(programs, udpTo(frontB, three...)), map[string]string{}
	for port := range 20 {
		at := fmt.Sprintf("10.96.0.1:%d", 1000+port)
		f := frontTo(three...)
		f.AffinitySeconds = 3600
		rows[frontAt(at, unix.IPPROTO_TCP)] = f
		first[at] = ""
	}
	put(t, s.target, rows, nil)
	for at := range first {
		first[at], _ = s.connect(unix.AF_INET, at)
	}
	must(t, s.space.Do(func() error {
		for range 80_000 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = unix.Sendto(fd, nil, unix.MSG_DONTWAIT, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(frontB)))
			unix.Close(fd)
			if err != nil && err != unix.EAGAIN {
				return err
			}
		}
		return nil
	}))
	for at, want := range first {
		if who, _ := s.connect(unix.AF_INET, at); who != want {
			t.Errorf("%s: %s, want %s", at, who, want)
		}
	}
}

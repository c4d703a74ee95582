package datapath_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// try says what comes of something: who answers, and what he is named, or the
// error.
func (s *sockets) try(family, kind int, do func(fd int) error) string {
	fd := s.socket(family, kind).fd
	if err := do(fd); err != nil {
		return err.Error()
	}
	b := make([]byte, 100)
	n, from, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err.Error()
	}
	if kind == unix.SOCK_STREAM {
		from, err = unix.Getpeername(fd)
	}
	return fmt.Sprintf("%s named %v %v", b[:n], addrPortOf(from), err)
}

// TestSocketLBSameAsNftables (invariant V8): whatever sockets do, the same comes
// of it with the programs as with nftables alone.
func TestSocketLBSameAsNftables(t *testing.T) {
	s := newSockets(t)
	for _, at := range []string{"10.1.0.1:80", "[fd00:1::1]:80"} {
		s.serve(at)
	}
	ip(t, s.space, "route", "add", "10.96.0.0/16", "dev", "lo", "src", "10.1.0.3")
	ip(t, s.space, "route", "add", "fd00:96::/112", "dev", "lo", "src", "fd00:1::2")
	ip(t, s.space, "route", "add", "198.51.100.0/24", "dev", "lo", "src", "10.1.0.3")
	ranged := frontTo("10.1.0.1:80")
	ranged.Ranges = "203.0.113.0/24"
	rows := map[service.FrontKey]service.Front{{}: {}}
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		maps.Copy(rows, map[service.FrontKey]service.Front{
			frontAt("10.96.0.1:80", protocol): frontTo("10.1.0.1:80"), frontAt("10.96.0.2:80", protocol): frontTo("10.1.0.1:80"),
			frontAt("[fd00:96::1]:80", protocol): frontTo("[fd00:1::1]:80"),
			frontAt("10.96.0.3:80", protocol):    {Verdict: service.Reject},
			frontAt("10.96.0.4:80", protocol):    frontTo("10.96.0.1:80"), // a Service behind a Service
			frontAt("10.96.0.5:80", protocol):    frontTo("10.1.0.1:81"),  // where nobody listens
			frontAt("198.51.100.1:80", protocol): ranged,
		})
	}
	rows[frontAt("10.96.0.1:90", unix.IPPROTO_TCP)] = frontTo("10.1.0.1:80")

	var todo []func() (string, string)
	add := func(name string, family, kind int, do func(fd int) error) {
		todo = append(todo, func() (string, string) { return name, s.try(family, kind, do) })
	}
	for _, to := range []struct {
		at     string
		family int
	}{
		{"10.96.0.1:80", unix.AF_INET}, {"10.96.0.1:80", unix.AF_INET6}, {"[fd00:96::1]:80", unix.AF_INET6}, {"10.96.0.3:80", unix.AF_INET}, {"10.96.0.4:80", unix.AF_INET},
		{"10.96.0.4:80", unix.AF_INET6}, {"10.96.0.5:80", unix.AF_INET}, {"10.96.0.9:80", unix.AF_INET}, {"10.96.0.1:90", unix.AF_INET},
		{"10.96.0.1:81", unix.AF_INET}, {"198.51.100.1:80", unix.AF_INET}, {"10.1.0.1:80", unix.AF_INET},
	} {
		at, x := sockaddrOf(to.family, netip.MustParseAddrPort(to.at)), []byte("x")
		name := fmt.Sprintf("%s, family %d, ", to.at, to.family)
		connect := func(fd int) error { return unix.Connect(fd, at) }
		add(name+"TCP", to.family, unix.SOCK_STREAM, connect)
		add(name+"UDP connected", to.family, unix.SOCK_DGRAM, func(fd int) error { return errors.Join(connect(fd), unix.Send(fd, x, 0)) })
		add(name+"UDP connected and given", to.family, unix.SOCK_DGRAM, func(fd int) error { return errors.Join(connect(fd), unix.Sendto(fd, x, 0, at)) })
		add(name+"UDP", to.family, unix.SOCK_DGRAM, func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1), unix.Sendto(fd, x, 0, at))
		})
		if to.family == unix.AF_INET {
			add(name+"UDP after another", to.family, unix.SOCK_DGRAM, func(fd int) error {
				other := sockaddrOf(to.family, netip.MustParseAddrPort("10.96.0.2:80"))
				err := unix.Sendto(fd, x, 0, other)
				_, _, readErr := unix.Recvfrom(fd, make([]byte, 100), 0)
				return errors.Join(err, readErr, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1), unix.Sendto(fd, x, 0, at))
			})
		}
	}
	all := func() map[string]string {
		out := map[string]string{}
		for _, do := range todo {
			name, got := do()
			out[name] = got
		}
		return out
	}
	converge(t, "services", reconcile.Target[service.FrontKey, service.Front](newServices(t, s.space)), rows)
	want := all()
	s.pass(socketlb.Fronts(rows))
	for name, got := range all() {
		if got != want[name] {
			t.Errorf("%s: %s; with nftables alone %s", name, got, want[name])
		}
	}
	if n, err := socketlb.Outcomes(s.opt.Pins); err != nil || n["forwarded"] < 20 {
		t.Errorf("sockets %v: %v", n, err)
	}
}

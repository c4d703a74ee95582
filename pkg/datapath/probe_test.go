package datapath_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

const probeTime = 2 * time.Second

// serve answers on TCP with the address that a connection comes from, on every
// address of the namespace. It returns the port.
func serve(t testing.TB, s nl.Space) uint16 {
	t.Helper()
	var l net.Listener
	must(t, s.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", "[::]:0")
		return err
	}))
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			c.Close()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// ask connects from a namespace and returns which source the server saw.
func ask(s nl.Space, dst netip.Addr, port uint16) (netip.Addr, error) {
	var seen string
	err := s.Do(func() error {
		c, err := (&net.Dialer{Timeout: probeTime}).Dial("tcp", netip.AddrPortFrom(dst, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(probeTime))
		seen, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(seen[:len(seen)-1])
}

// reaches checks that from can open a connection to dst and is seen as source.
func reaches(t testing.TB, from nl.Space, dst netip.Addr, port uint16, source netip.Addr) {
	t.Helper()
	seen, err := ask(from, dst, port)
	if err != nil {
		t.Errorf("connect to %v: %v", dst, err)
	} else if seen != source {
		t.Errorf("connect to %v: server saw source %v, want %v", dst, seen, source)
	}
}

// isUnreachable tells whether a router said no, as opposed to silence.
func isUnreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// sink takes one TCP connection and tells how many bytes came.
func sink(t testing.TB, s nl.Space) (uint16, <-chan int64) {
	t.Helper()
	var l net.Listener
	must(t, s.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", "[::]:0")
		return err
	}))
	got := make(chan int64, 1)
	go func() {
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port), got
}

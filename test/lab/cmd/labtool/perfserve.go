package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// perfserve is the other end of labtool perf: one thread per kind of
// measurement, all on the same CPU, with blocking sockets. What it costs is the
// kernel's work and little else.
func perfserve(ctx context.Context, args []string) error {
	cpu, err := parseCPU("perfserve", args)
	if err != nil {
		return err
	}
	talks := map[int]func(fd int){rrPort: answerAll, crrPort: answerOnce, streamPort: discard}
	for port := firstCRRPort; port <= lastCRRPort; port++ {
		talks[port] = answerOnce
	}
	var g errgroup.Group
	for port, talk := range talks {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		// A duplicate of the socket outside of the runtime's poller; Fd makes it block.
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		l.Close()
		g.Go(func() error {
			defer f.Close() // and so it is not closed before
			return acceptAll(int(f.Fd()), cpu, talk)
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	select {
	case <-ctx.Done():
		return nil // the process ends, and its blocked threads with it
	case err := <-done:
		return err
	}
}

// acceptAll serves one connection at a time.
func acceptAll(listener, cpu int, talk func(fd int)) error {
	if err := pin(cpu); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if noDelay(fd) == nil {
			talk(fd)
		}
		unix.Close(fd)
	}
}

// The ends of the measurements. They give up at the first error: the client says
// what went wrong.

func answerAll(fd int) {
	var b [1]byte
	for answer(fd, b[:]) {
	}
}

func answerOnce(fd int) {
	var b [1]byte
	answer(fd, b[:])
}

func answer(fd int, b []byte) bool {
	if n, err := unix.Read(fd, b); err != nil || n == 0 {
		return false
	}
	_, err := unix.Write(fd, b)
	return err == nil
}

func discard(fd int) {
	buf := make([]byte, 256<<10)
	for {
		if n, err := unix.Read(fd, buf); err != nil || n == 0 {
			return
		}
	}
}

// pin keeps the calling goroutine on a thread of its own, and that on one CPU,
// ahead of whatever else runs there if the pod may do so (CAP_SYS_NICE). The
// kernel's work for its packets stays on that CPU too, as veth hands them over
// where they are sent.
func pin(cpu int) error {
	runtime.LockOSThread()
	if cpu < 0 {
		return nil
	}
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20) // of this thread
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connect makes a blocking connection that gives up on a silent peer.
func connect(to unix.Sockaddr) (int, error) {
	family := unix.AF_INET
	if _, is := to.(*unix.SockaddrInet6); is {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make socket: %w", err)
	}
	// Not by time-outs of the socket: with those a signal ends system calls.
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000)
	if err == nil {
		err = noDelay(fd)
	}
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

func noDelay(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

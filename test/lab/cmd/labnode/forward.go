package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// forward accepts on listen in this network namespace and connects to address
// in the one at netns, so that no route between the two need exist. The
// namespace is opened for each connection: a node that was switched off comes
// back with a new one.
func forward(listen, netns, address string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			server, err := dialIn(netns, address)
			if err != nil {
				log.Printf("forward: %v", err)
				return
			}
			defer server.Close()
			join(client, server)
		}()
	}
}

// dialIn connects from a thread inside netns. A socket stays in the namespace it
// was made in.
func dialIn(netns, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		conn, err := dialFromThread(netns, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialFromThread(netns, address string) (net.Conn, error) {
	f, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", netns, err)
	}
	// An IP address and no fallback delay: the dial stays on this thread.
	d := net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}
	return d.DialContext(context.Background(), "tcp", address)
}

// join copies both ways until both sides have ended.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			if half, ok := pair[0].(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

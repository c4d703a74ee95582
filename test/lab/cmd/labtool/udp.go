package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// echo is a UDP answer: what the server saw, and the client's message again.
type echo struct {
	seen
	Message string `json:"message"`
}

// serveUDP answers each datagram with what arrived.
func serveUDP(ctx context.Context, network string) error {
	port, err := net.LookupPort("udp", udpPort)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := wantTTL(conn, network == "udp6"); err != nil {
		return err
	}
	answer := echo{seen: whoAmI()}
	for {
		message, ttl, from, err := receive(conn)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		answer.Source, answer.Message = from.String(), message
		answer.TTL, answer.Hops = ttl, 64-ttl
		data, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		// A client that is gone, or a route that is: the next one may be luckier.
		_, _ = conn.WriteToUDP(data, from)
	}
}

// wantTTL makes the kernel report the time to live with each datagram.
func wantTTL(conn *net.UDPConn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
			return
		}
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("ask for the time to live: %w", err)
	}
	return nil
}

func receive(conn *net.UDPConn) (message string, ttl int, from *net.UDPAddr, err error) {
	buf, control := make([]byte, 2048), make([]byte, 128)
	n, cn, _, from, err := conn.ReadMsgUDP(buf, control)
	if err != nil {
		return "", 0, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		return "", 0, nil, err
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
		if (v4 || v6) && len(m.Data) > 0 {
			// A native int holding 0..255; the architectures we build for are little-endian.
			ttl = int(m.Data[0])
		}
	}
	return string(buf[:n]), ttl, from, nil
}

// udpResult is what labtool udp prints.
type udpResult struct {
	Server    seen    `json:"server"`
	Local     string  `json:"local"`
	RTTMillis float64 `json:"rttMillis"`
	// TTL and Hops are those of the answer.
	TTL  int `json:"ttl"`
	Hops int `json:"hops"`
}

// udp sends one datagram and waits for the answer.
func udp(args []string) error {
	f := flag.NewFlagSet("udp", flag.ContinueOnError)
	timeout := f.Duration("timeout", 2*time.Second, "how long to wait for the answer")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return errors.New("udp: give one HOST[:PORT]")
	}
	return askUDP(f.Arg(0), *timeout)
}

func askUDP(host string, timeout time.Duration) error {
	address, err := net.ResolveUDPAddr("udp", endpoint(host, udpPort))
	if err != nil {
		return err
	}
	conn, err := net.DialUDP("udp", nil, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := wantTTL(conn, address.IP.To4() == nil); err != nil {
		return err
	}
	start := time.Now()
	if err := conn.SetDeadline(start.Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	message, ttl, _, err := receive(conn)
	if err != nil {
		return fmt.Errorf("no answer from %s: %w", address, err)
	}
	result := udpResult{Local: conn.LocalAddr().String(), TTL: ttl, Hops: 64 - ttl}
	result.RTTMillis = float64(time.Since(start).Microseconds()) / 1000
	var answer echo
	if err := json.Unmarshal([]byte(message), &answer); err != nil {
		return fmt.Errorf("decode answer of %s: %w", address, err)
	}
	result.Server = answer.seen
	return printJSON(result)
}

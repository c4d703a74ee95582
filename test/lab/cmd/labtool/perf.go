package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The ports that perfserve listens on.
const (
	rrPort     = 8083
	crrPort    = 8084
	streamPort = 8085
	// More ports like crrPort. A path that reaches the server by translated
	// addresses must have a port of its own: its sequence numbers and time stamps
	// do not continue those of another path, so the server would take its SYN for a
	// stray segment of a connection in TIME_WAIT.
	firstCRRPort, lastCRRPort = 8100, 8131
)

// perfResult is one line of labtool perf.
type perfResult struct {
	Verb    string  `json:"verb"`
	Ops     int64   `json:"ops,omitempty"`   // round trips, or connections
	Bytes   int64   `json:"bytes,omitempty"` // of a stream
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// perf reads lines "rr|crr|stream ADDRESS[:PORT] DURATION" and answers each with a line
// of JSON. It stays one process on one CPU, so that nothing but the network is
// between two measurements.
func perf(ctx context.Context, args []string, in io.Reader) error {
	cpu, err := parseCPU("perf", args)
	if err != nil {
		return err
	}
	if err := pin(cpu); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(in)
	for ctx.Err() == nil && lines.Scan() {
		r := perfResult{Verb: lines.Text()}
		if err := r.measure(lines.Text()); err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

func parseCPU(verb string, args []string) (int, error) {
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	cpu := f.Int("cpu", -1, "the CPU to run on; -1: any")
	err := f.Parse(args)
	return *cpu, err
}

func (r *perfResult) measure(line string) error {
	var address, duration string
	if _, err := fmt.Sscan(line, &r.Verb, &address, &duration); err != nil {
		return fmt.Errorf("read %q: %w", line, err)
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil { // without a port: that of perfserve
		a, err := netip.ParseAddr(strings.Trim(address, "[]"))
		if err != nil {
			return err
		}
		at = netip.AddrPortFrom(a, map[string]uint16{"rr": rrPort, "crr": crrPort, "stream": streamPort}[r.Verb])
	}
	d, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	start := time.Now()
	switch r.Verb {
	case "rr":
		r.Ops, err = requestResponse(sockaddr(at), start.Add(d))
	case "crr":
		r.Ops, err = connections(sockaddr(at), start.Add(d))
	case "stream":
		r.Bytes, err = stream(sockaddr(at), start.Add(d))
	default:
		err = fmt.Errorf("verb %q is not known: use rr, crr or stream", r.Verb)
	}
	r.Seconds = time.Since(start).Seconds()
	return err
}

// requestResponse exchanges one byte each way over one connection, again and again.
func requestResponse(to unix.Sockaddr, until time.Time) (n int64, err error) {
	fd, err := connect(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for ; n%16 != 0 || time.Now().Before(until); n++ {
		if err := exchange(fd); err != nil {
			return n, err
		}
	}
	return n, nil
}

// connections does connect, request, response, close. The server closes first: so
// its side keeps the ports in TIME_WAIT, and ours never run out.
func connections(to unix.Sockaddr, until time.Time) (n int64, err error) {
	for ; time.Now().Before(until); n++ {
		if err := oneConnection(to); err != nil {
			return n, err
		}
	}
	return n, nil
}

func oneConnection(to unix.Sockaddr) error {
	fd, err := connect(to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := exchange(fd); err != nil {
		return err
	}
	return wantEOF(fd)
}

// stream sends until the time is over, and waits until all has arrived.
func stream(to unix.Sockaddr, until time.Time) (n int64, err error) {
	fd, err := connect(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 128<<10)
	for time.Now().Before(until) {
		sent, err := unix.Write(fd, buf)
		if err != nil {
			return n, fmt.Errorf("send: %w", err)
		}
		n += int64(sent)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return n, fmt.Errorf("shut down: %w", err)
	}
	return n, wantEOF(fd)
}

// exchange sends a byte and waits for one.
func exchange(fd int) error {
	var b [1]byte
	if _, err := unix.Write(fd, b[:]); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	n, err := unix.Read(fd, b[:])
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

func wantEOF(fd int) error {
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	if err == nil && n != 0 {
		err = errors.New("there is more data")
	}
	if err != nil {
		return fmt.Errorf("wait for the end of the connection: %w", err)
	}
	return nil
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// flowResult is what labtool flow prints.
type flowResult struct {
	Protocol string `json:"protocol"`
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	// Lost counts messages without an answer. TCP makes losses good by itself, so
	// there Retransmits tells that packets were lost (or late).
	Lost        int     `json:"lost"`
	Reordered   int     `json:"reordered"`
	Retransmits int     `json:"retransmits"`
	MaxGapMs    float64 `json:"maxGapMs"`
	// Broken is why the flow ended before its time: reset, refused, unreachable.
	Broken string `json:"broken,omitempty"`
	// SendErrors counts what UDP could not send.
	SendErrors int `json:"sendErrors,omitempty"`
}

type flowOptions struct {
	to       string
	udp      bool
	interval time.Duration
	duration time.Duration
	stdin    bool
}

func parseFlow(args []string) (flowOptions, error) {
	var o flowOptions
	f := flag.NewFlagSet("flow", flag.ContinueOnError)
	f.StringVar(&o.to, "to", "", "the server")
	f.BoolVar(&o.udp, "udp", false, "UDP instead of one TCP connection")
	f.DurationVar(&o.interval, "interval", 5*time.Millisecond, "between messages")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "of the whole flow; a signal ends it sooner")
	f.BoolVar(&o.stdin, "stdin", false, "end when standard input ends: kubectl exec passes no signals")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.to == "" {
		return o, errors.New("flow: --to HOST[:PORT] is missing")
	}
	return o, nil
}

// flow keeps one flow up. It prints "started" on stderr with the first answer, so
// that a test knows when to begin its mischief, and the result at the end.
func flow(ctx context.Context, args []string) error {
	o, err := parseFlow(args)
	if err != nil {
		return err
	}
	network, port := "tcp", flowPort
	if o.udp {
		network, port = "udp", udpPort
	}
	conn, err := net.DialTimeout(network, endpoint(o.to, port), 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	if o.stdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	t := &tally{result: flowResult{Protocol: network}, answered: map[int]bool{}}
	t.exchange(ctx, conn, o)
	return printJSON(t.finish(conn))
}

// tally counts one flow.
type tally struct {
	mu       sync.Mutex // guards all below: sender and receiver are two goroutines
	result   flowResult
	answered map[int]bool
	highest  int
	last     time.Time
}

// exchange sends until ctx ends, then gives the last answers a second.
func (t *tally) exchange(ctx context.Context, conn net.Conn, o flowOptions) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel() // a broken flow need not be sent to
		t.receive(conn, o.udp)
	}()
	t.send(ctx, conn, o)
	t.drain(conn)
	<-done
}

func (t *tally) send(ctx context.Context, conn net.Conn, o flowOptions) {
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for number := 1; ; number++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		t.result.Sent++
		t.mu.Unlock()
		if _, err := fmt.Fprintf(conn, "%d\n", number); err != nil && !t.sendFailed(err, o.udp) {
			return
		}
	}
}

// sendFailed tells whether to go on. A UDP socket reports ICMP errors of earlier
// datagrams, and a route may come back.
func (t *tally) sendFailed(err error, udp bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if udp {
		t.result.SendErrors++
		return true
	}
	t.result.Broken = err.Error()
	return false
}

// drain waits until every answer is in, or a second has passed.
func (t *tally) drain(conn net.Conn) {
	deadline := time.Now().Add(time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for t.missing() && time.Now().Before(deadline) {
		<-tick.C
	}
	_ = conn.SetReadDeadline(time.Now())
}

func (t *tally) missing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.result.Broken == "" && len(t.answered) < t.result.Sent
}

func (t *tally) receive(conn net.Conn, udp bool) {
	next := tcpAnswers(conn)
	if udp {
		next = udpAnswers(conn)
	}
	for {
		number, err := next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if udp && errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			t.mu.Lock()
			t.result.Broken = err.Error()
			t.mu.Unlock()
			return
		}
		t.count(number)
	}
}

func tcpAnswers(conn net.Conn) func() (int, error) {
	r := bufio.NewReader(conn)
	return func() (int, error) {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line))
	}
}

func udpAnswers(conn net.Conn) func() (int, error) {
	buf := make([]byte, 2048)
	return func() (int, error) {
		n, err := conn.Read(buf)
		if err != nil {
			return 0, err
		}
		var answer echo
		if err := json.Unmarshal(buf[:n], &answer); err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(answer.Message))
	}
}

func (t *tally) count(number int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.last.IsZero() {
		fmt.Fprintln(os.Stderr, "started")
	} else if gap := float64(now.Sub(t.last).Microseconds()) / 1000; gap > t.result.MaxGapMs {
		t.result.MaxGapMs = gap
	}
	t.last = now
	if number < t.highest {
		t.result.Reordered++
	}
	t.highest = max(t.highest, number)
	t.answered[number] = true
}

func (t *tally) finish(conn net.Conn) flowResult {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Received = len(t.answered)
	t.result.Lost = t.result.Sent - t.result.Received
	t.result.Retransmits = retransmits(conn)
	return t.result
}

func retransmits(conn net.Conn) int {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	var total int
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			total = int(info.Total_retrans)
		}
	})
	return total
}

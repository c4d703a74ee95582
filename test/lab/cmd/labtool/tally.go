package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// tallyResult is what labtool tally prints: how often each pod answered, as whom
// it saw us, and what went wrong how often.
type tallyResult struct {
	Pods    map[string]int `json:"pods"`
	Sources map[string]int `json:"sources"`
	Errors  map[string]int `json:"errors"`
}

// tallyAnswers asks a labtool server many times, each time with a new connection
// or socket.
func tallyAnswers(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("tally", flag.ContinueOnError)
	udp := f.Bool("udp", false, "datagrams instead of HTTP")
	count := f.Int("count", 1, "how often")
	interval := f.Duration("interval", 0, "between two")
	timeout := f.Duration("timeout", time.Second, "how long to wait for an answer")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *count < 1 {
		return errors.New("tally: give one HOST:PORT, and a count of 1 or more")
	}
	ask := askHTTP
	if *udp {
		ask = askOnce
	}
	r := tallyResult{map[string]int{}, map[string]int{}, map[string]int{}}
	for range *count {
		s, err := ask(ctx, f.Arg(0), *timeout)
		if err != nil {
			r.Errors[reason(err)]++
		} else {
			host, _, _ := net.SplitHostPort(s.Source)
			r.Pods[s.Pod]++
			r.Sources[host]++
		}
		time.Sleep(*interval)
	}
	return printJSON(r)
}

// reason is a short name for an error, the same for all addresses and ports.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.EPERM):
		return "not permitted"
	case errors.Is(err, unix.ECONNRESET):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "unreachable"
	}
	return err.Error()
}

func askHTTP(ctx context.Context, to string, timeout time.Duration) (s seen, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to+"/", nil)
	if err != nil {
		return s, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// askOnce exchanges one datagram from a socket of its own.
func askOnce(_ context.Context, to string, timeout time.Duration) (s seen, err error) {
	conn, err := net.Dial("udp", to)
	if err != nil {
		return s, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return s, err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return s, err
	}
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	if err != nil {
		return s, err
	}
	var answer echo
	if err := json.Unmarshal(buf[:n], &answer); err != nil {
		return s, fmt.Errorf("decode answer: %w", err)
	}
	return answer.seen, nil
}

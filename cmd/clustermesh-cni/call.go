package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"golang.org/x/sys/unix"
)

// call sends req to the agent and returns its answer. It writes the few bytes
// of HTTP itself: packages net and net/http would cost more time to start and
// more memory than all the rest of the plugin.
func call(socket string, req api.Request, timeout time.Duration) (ok bool, body []byte, err error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return false, nil, fmt.Errorf("encode request: %w", err)
	}
	fd, err := dial(socket, timeout)
	if err != nil {
		return false, nil, err
	}
	defer unix.Close(fd)
	// HTTP/1.0: the answer is neither chunked nor followed by another.
	message := fmt.Appendf(nil, "POST %s HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		api.Path, len(payload), payload)
	if err := send(fd, message, req.NetNS); err != nil {
		return false, nil, fmt.Errorf("send to %s: %w", socket, err)
	}
	answer, err := receive(fd, time.Now().Add(timeout))
	if err != nil {
		return false, nil, fmt.Errorf("receive from %s: %w", socket, err)
	}
	return parse(answer)
}

func dial(socket string, timeout time.Duration) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("create socket: %w", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	if err == nil {
		err = retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: socket}) })
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return fd, nil
}

// send passes a descriptor of the pod's network namespace with the first byte,
// if there is one: the agent may see other paths and processes than we do. If it
// cannot be opened the agent says what it makes of the path.
func send(fd int, message []byte, netns string) error {
	var rights []byte
	if netns != "" {
		ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(ns)
			rights = unix.UnixRights(ns)
		}
	}
	for len(message) > 0 {
		var n int
		err := retry(func() (err error) {
			n, err = unix.SendmsgN(fd, message, rights, nil, unix.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return timedOut(err)
		}
		message, rights = message[n:], nil
	}
	return nil
}

// receive reads until the agent hangs up.
func receive(fd int, deadline time.Time) ([]byte, error) {
	var out []byte
	buf := make([]byte, 16<<10)
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Read(fd, buf)
			return err
		})
		switch {
		case err != nil:
			return nil, timedOut(err)
		case n == 0:
			return out, nil
		case time.Now().After(deadline):
			return nil, timedOut(unix.EAGAIN)
		}
		out = append(out, buf[:n]...)
	}
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func timedOut(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return errors.New("timed out")
	}
	return err
}

// parse takes an HTTP answer apart. One that was cut short is an error, because
// the agent died while it wrote.
func parse(answer []byte) (ok bool, body []byte, err error) {
	head, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !found {
		return false, nil, errors.New("the answer was cut short")
	}
	lines := bytes.Split(head, []byte("\r\n"))
	fields := bytes.Fields(lines[0])
	if len(fields) < 2 {
		return false, nil, fmt.Errorf("status line %q is not HTTP", lines[0])
	}
	for _, line := range lines[1:] {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if !bytes.EqualFold(name, []byte("Content-Length")) {
			continue
		}
		if want, err := strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || want != len(body) {
			return false, nil, errors.New("the answer was cut short")
		}
	}
	switch string(fields[1]) {
	case "200":
		return true, body, nil
	case "500":
		return false, body, nil
	}
	return false, nil, fmt.Errorf("the agent answered %q", lines[0])
}

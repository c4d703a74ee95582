package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// client is a labtool perf process in a pod.
type client struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startClient(cmd *exec.Cmd) (*client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &client{cmd, in, bufio.NewScanner(out)}, nil
}

// measure returns operations per second, or Gbit/s of a stream.
func (c *client) measure(verb, address string, d time.Duration) (float64, error) {
	if _, err := fmt.Fprintln(c.in, verb, address, d); err != nil {
		return 0, err
	}
	if !c.out.Scan() {
		return 0, fmt.Errorf("labtool perf ended: %v", c.out.Err())
	}
	var r struct {
		Ops, Bytes int64
		Seconds    float64
		Error      string
	}
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil {
		return 0, fmt.Errorf("labtool perf said %q: %w", c.out.Text(), err)
	}
	if r.Error != "" {
		return 0, fmt.Errorf("%s to %s: %s", verb, address, r.Error)
	}
	return (float64(r.Ops) + float64(r.Bytes)*8/1e9) / r.Seconds, nil
}

// close ends the process.
func (c *client) close() {
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

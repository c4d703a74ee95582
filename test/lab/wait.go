package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// poll asks done every 100 ms until it says yes, gives an error, or the time is up.
func poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("wait for %s: not within %s", what, limit)
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// progress prints steps with the seconds since it began.
type progress struct {
	start time.Time
	mu    sync.Mutex // guards out: clusters report at the same time
	out   io.Writer
}

func newProgress(out io.Writer) *progress { return &progress{start: time.Now(), out: out} }

func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%6.1fs  %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// runShowingTime runs cmd with a line at its begin, every 15 seconds, and at its end.
func runShowingTime(cmd *exec.Cmd, out *progress, what string) error {
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	out.step("%s", what)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(15 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%s: %w: %s", what, err, lastLines(output.String()))
			}
			out.step("%s: done in %.0f s", what, time.Since(start).Seconds())
			return nil
		case <-tick.C:
			out.step("%s: still at it after %.0f s", what, time.Since(start).Seconds())
		}
	}
}

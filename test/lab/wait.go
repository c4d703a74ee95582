package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	pollEvery     = 500 * time.Millisecond
	progressEvery = 10 * time.Second // an unchanged wait is repeated, so that nobody takes it for a hang
)

// progress prints lines with the time since its start: what was done, and what is being waited for.
type progress struct {
	out     io.Writer
	start   time.Time
	last    string
	printed time.Time
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, start: time.Now()}
}

// step prints one line.
func (p *progress) step(format string, args ...any) {
	p.last, p.printed = fmt.Sprintf(format, args...), time.Now()
	fmt.Fprintf(p.out, "%6.1fs  %s\n", p.printed.Sub(p.start).Seconds(), p.last)
}

// waiting prints a line when it differs from the last one, or when that one has grown old.
func (p *progress) waiting(line string) {
	if line != p.last || time.Since(p.printed) >= progressEvery {
		p.step("%s", line)
	}
}

// poll asks check until it answers done, and prints why it is not yet. An error of check ends the wait; when ctx ends,
// the error names the last reason, which is what the user has to look into.
func (p *progress) poll(ctx context.Context, check func(context.Context) (done bool, why string, err error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	reason := "the first answer of the API server"
	for {
		done, why, err := check(ctx)
		switch {
		case ctx.Err() != nil:
			return p.gaveUp(ctx, reason)
		case err != nil:
			return err
		case done:
			return nil
		}
		reason = why
		p.waiting("waiting for " + why)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// gaveUp says what was being waited for when time was up or the user interrupted.
func (p *progress) gaveUp(ctx context.Context, reason string) error {
	waited := time.Since(p.start).Round(time.Second)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no time left after %s (--timeout gives more); waited for %s: %w", waited, reason, ctx.Err())
	}
	return fmt.Errorf("interrupted after %s; waited for %s: %w", waited, reason, ctx.Err())
}

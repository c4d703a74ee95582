package gratuitous

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// How often neighbours are told of an address, and with which pause. A frame
// may be lost, and who answered before may do so a moment longer.
const (
	Times = 3
	Pause = time.Second
)

// Place is an address at a device.
type Place struct {
	Dev  string
	Addr netip.Addr
}

// Teller tells neighbours of new places, a few times each.
type Teller struct {
	send func(Place) error
	log  *slog.Logger
	wake chan struct{}

	mu   sync.Mutex
	left map[Place]int // guarded by mu: how often they are yet to be told
}

// NewTeller returns a teller for a namespace.
func NewTeller(log *slog.Logger, space nl.Space) *Teller {
	return newTeller(log, func(p Place) error { return Send(space, p.Dev, p.Addr) })
}

func newTeller(log *slog.Logger, send func(Place) error) *Teller {
	return &Teller{send: send, log: log, wake: make(chan struct{}, 1), left: map[Place]int{}}
}

// Tell has neighbours told that an address is at a place.
func (t *Teller) Tell(p Place) {
	t.mu.Lock()
	t.left[p] = Times
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Forget stops telling of a place.
func (t *Teller) Forget(p Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.left, p)
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wake:
		case <-again:
		}
		again = nil
		if t.once() {
			again = time.After(Pause)
		}
	}
}

// once tells of every place once, and whether any are left.
func (t *Teller) once() (more bool) {
	var errs []error
	for _, p := range t.due() {
		errs = append(errs, t.send(p))
	}
	if err := errors.Join(errs...); err != nil {
		t.log.Warn("neighbours not told of an address; those that know it elsewhere find out by themselves", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.left) > 0
}

func (t *Teller) due() []Place {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Place, 0, len(t.left))
	for p, n := range t.left {
		out = append(out, p)
		if t.left[p] = n - 1; n == 1 {
			delete(t.left, p)
		}
	}
	return out
}

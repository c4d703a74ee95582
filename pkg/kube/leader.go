package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Leader takes part in the election of the one replica that writes to
// Kubernetes (and to a shared etcd), by a Lease in our namespace.
type Leader struct {
	client   *Client
	name     string
	identity string
	log      *slog.Logger
	leading  atomic.Bool
}

// NewLeader returns a candidate called identity for the Lease called name.
func (c *Client) NewLeader(name, identity string, log *slog.Logger) *Leader {
	return &Leader{client: c, name: name, identity: identity, log: log}
}

// Leading tells whether this replica holds the Lease.
func (l *Leader) Leading() bool { return l.leading.Load() }

// Run calls lead whenever this replica is elected, with a context that ends
// when it no longer is, and stands again. An error of lead ends Run.
func (l *Leader) Run(ctx context.Context, lead func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := l.term(ctx, lead); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// term is one candidacy: it ends when the Lease is lost or ctx ends. The Lease
// is given up only after lead has returned, so two replicas never write at once.
func (l *Leader) term(ctx context.Context, lead func(context.Context) error) error {
	elected, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	t := term{result: make(chan error, 1)}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: l.name,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: l.name, Namespace: l.client.Namespace},
			Client:     l.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
		},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(holding context.Context) {
				holding, stop := context.WithCancel(holding)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				l.leading.Store(true)
				t.run(func() error { return lead(holding) })
				l.leading.Store(false)
				resign()
			},
			OnStoppedLeading: func() { l.leading.Store(false) },
		},
	})
	if err != nil {
		return fmt.Errorf("stand for lease %s: %w", l.name, err)
	}
	defer context.AfterFunc(ctx, func() {
		if !t.end() {
			resign() // nothing runs that would do it
		}
	})()
	elector.Run(elected)
	if !t.end() {
		return nil
	}
	// Cancelled means that the Lease was lost, or ctx ended.
	if err = <-t.result; err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("lead: %w", err)
	}
	return nil
}

// term tells whether a lead function was started, so that one that the elector
// starts late, after the candidacy ended, does nothing.
type term struct {
	mu      sync.Mutex
	started bool // guarded by mu
	ended   bool // guarded by mu
	result  chan error
}

func (t *term) run(f func() error) {
	t.mu.Lock()
	ended := t.ended
	t.started = t.started || !ended
	t.mu.Unlock()
	if !ended {
		t.result <- f()
	}
}

// end tells whether something was started; if not, nothing will be.
func (t *term) end() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return t.started
}

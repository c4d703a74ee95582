package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// HeartbeatOptions of a Heartbeat.
type HeartbeatOptions struct {
	Interval time.Duration // between beats; 0: 5 s
	TTL      time.Duration // after which the row goes; 0: 30 s
	Log      *slog.Logger
}

// Heartbeat rewrites a row at an interval, under a lease, so that readers see
// that its writer lives: by the row changing, and by its end if it does not.
type Heartbeat struct {
	client *clientv3.Client
	key    string
	value  func() string
	opt    HeartbeatOptions
	lease  clientv3.LeaseID // owned by Run
}

// NewHeartbeat returns a heartbeat; value is asked for each beat.
func NewHeartbeat(client *clientv3.Client, key string, value func() string, opt HeartbeatOptions) *Heartbeat {
	if opt.Interval == 0 {
		opt.Interval = 5 * time.Second
	}
	if opt.TTL == 0 {
		opt.TTL = 30 * time.Second
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Heartbeat{client: client, key: key, value: value, opt: opt}
}

// Run beats until ctx ends. It leaves the row to its lease: a writer that is
// restarted goes on with the same row.
func (h *Heartbeat) Run(ctx context.Context) error {
	tick := time.NewTicker(h.opt.Interval)
	defer tick.Stop()
	failing := false
	for {
		err := h.beat(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failing != (err != nil) {
			failing = err != nil
			h.opt.Log.Warn("heartbeat changed", "key", h.key, "beating", !failing, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// beat renews the lease and writes the row. A lease that is gone, because we
// were away for too long or the store is another one, is replaced at once.
func (h *Heartbeat) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.opt.Interval)
	defer cancel()
	if h.lease != clientv3.NoLease {
		_, err := h.client.KeepAliveOnce(ctx, h.lease)
		if err == nil {
			err = h.put(ctx)
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
	}
	resp, err := h.client.Grant(ctx, int64(h.opt.TTL/time.Second))
	if err != nil {
		return fmt.Errorf("grant lease for %s: %w", h.key, err)
	}
	h.lease = resp.ID
	return h.put(ctx)
}

func (h *Heartbeat) put(ctx context.Context) error {
	if _, err := h.client.Put(ctx, h.key, h.value(), clientv3.WithLease(h.lease)); err != nil {
		return fmt.Errorf("write heartbeat %s: %w", h.key, err)
	}
	return nil
}

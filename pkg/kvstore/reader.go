package kvstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ReaderOptions of a Reader.
type ReaderOptions struct {
	Prefix   string      // what is read, with a slash at the end
	Grouped  bool        // keys are <group>/<kind>/…, as in the mirror
	Kinds    []wire.Kind // what is listed, in this order; nil means all but grants
	PageRows int64       // 0: 1000
	Gate     *Gate       // nil: list at any time
	// Resume makes a reader whose sink is a Resumer go on where the last
	// process ended, after handing these kinds back to the sink. It lists
	// everything a minute or two later all the same. Nil: list at the start.
	Resume []wire.Kind
	Log    *slog.Logger
	// OnState is called with each new state, one at a time; it must not block.
	OnState func(State)
}

// State is how a Reader is doing.
type State struct {
	Connected bool      // an endpoint answers
	Since     time.Time // of Connected's last change
	Synced    bool      // a full list was taken in since the start
	Endpoint  string    // in use, or tried last
	ClusterID uint64    // whose rows these are
	Revision  int64     // up to which changes were taken in
	Lists     int       // full lists since the start
	Error     string    // why it isn't connected, or why it lists again; empty if all is well
}

// Reader follows a prefix of a remote etcd. Create it with NewReader.
type Reader struct {
	dial      Dial
	endpoints func() []string
	sink      Sink
	opt       ReaderOptions
	relist    chan struct{}

	mu    sync.Mutex
	state State // guarded by mu

	// Owned by Run.
	cluster  uint64         // whose rows the sink has; 0: none
	revision int64          // up to here
	vouched  map[Part]bool  // listed with a mark
	listedAt map[Part]int64 // parts that were listed later than the rest
}

const (
	defaultPage = 1000
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 5 * time.Second
	// callTimeout bounds one request. A page of rows is read in milliseconds.
	callTimeout = 20 * time.Second
)

// maxError is how many bytes of an error are kept and shown.
const maxError = 500

// NewReader returns a reader that tries the endpoints one at a time, in order,
// and hands what it reads to sink.
func NewReader(dial Dial, endpoints func() []string, sink Sink, opt ReaderOptions) *Reader {
	if opt.PageRows == 0 {
		opt.PageRows = defaultPage
	}
	if opt.Kinds == nil {
		opt.Kinds = slices.DeleteFunc(wire.Kinds(), func(k wire.Kind) bool { return k == wire.KindGrant })
	}
	// The marks are read to be told to the sink; they are no part of their own.
	opt.Kinds = slices.DeleteFunc(slices.Clone(opt.Kinds), func(k wire.Kind) bool { return k == wire.KindSynced })
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Reader{dial: dial, endpoints: endpoints, sink: sink, opt: opt, relist: make(chan struct{}, 1)}
}

// Relist asks for a full list, for instance because the sink would now admit
// other rows. It never blocks.
func (r *Reader) Relist() {
	select {
	case r.relist <- struct{}{}:
	default:
	}
}

// State returns how the reader is doing.
func (r *Reader) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// Run reads until ctx ends, which it does with ctx's error.
func (r *Reader) Run(ctx context.Context) error {
	r.update(func(s *State) { s.Since = time.Now() })
	later := r.resume(ctx)
	defer later.Stop()
	var wait backoff
	last := ""
	for ctx.Err() == nil {
		start := time.Now()
		last = r.round(ctx, last)
		wait.next(ctx, time.Since(start))
	}
	r.update(func(s *State) { s.Connected = false })
	return ctx.Err()
}

// round tries each endpoint until one works, and returns that when it fails.
func (r *Reader) round(ctx context.Context, last string) string {
	endpoints := r.endpoints()
	if len(endpoints) == 0 {
		r.down("", errors.New("no endpoint is known"))
	}
	var first error
	var likely string
	for _, ep := range order(endpoints, last) {
		up, err := r.session(ctx, ep)
		if ctx.Err() != nil {
			return last
		}
		if first == nil || up {
			first, likely = err, ep
		}
		r.down(likely, first) // what comes later is less and less likely to be the peer, and its errors mislead
		if up {
			return ep
		}
	}
	return last
}

// backoff is the time between attempts. One that lasted is followed at once.
type backoff time.Duration

func (b *backoff) next(ctx context.Context, lasted time.Duration) {
	*b = min(max(2**b, backoff(minBackoff)), backoff(maxBackoff))
	if lasted > maxBackoff {
		*b = backoff(minBackoff)
	}
	pause(ctx, jitter(time.Duration(*b)))
}

// order puts the endpoint that worked last first.
func order(endpoints []string, last string) []string {
	i := slices.Index(endpoints, last)
	if i <= 0 {
		return endpoints
	}
	return slices.Concat([]string{last}, endpoints[:i], endpoints[i+1:])
}

func (r *Reader) down(endpoint string, err error) {
	r.update(func(s *State) {
		s.Connected, s.Error = false, err.Error()
		if endpoint != "" {
			s.Endpoint = endpoint
		}
	})
}

// session reads from one endpoint until that fails. up tells whether it worked
// for a while.
func (r *Reader) session(ctx context.Context, endpoint string) (up bool, err error) {
	conn, err := r.dial(ctx, endpoint)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	src := &source{conn: conn, kv: pb.NewKVClient(conn), endpoint: endpoint, opt: r.opt}
	head, err := src.head(ctx)
	if err != nil {
		return false, err
	}
	if head.ClusterId != r.cluster || head.Revision < r.revision {
		r.cluster = 0 // another incarnation, or one that lost its newest writes
	}
	r.update(func(s *State) { s.Connected, s.Endpoint, s.Error = true, endpoint, "" })
	var wait backoff
	for {
		start := time.Now()
		err := r.follow(ctx, src)
		var again *listAgainError
		if !errors.As(err, &again) {
			return true, err
		}
		r.cluster = 0
		r.opt.Log.Info("listing again", "prefix", r.opt.Prefix, "endpoint", endpoint, "reason", wire.Shown(again.why.Error(), maxError))
		if again.failed {
			r.update(func(s *State) { s.Error = again.Error() })
		}
		if again.failed || !again.asked && time.Since(start) < maxBackoff { // a source must not make us list all the time
			wait.next(ctx, time.Since(start))
		}
	}
}

// follow lists if it must, then watches until something fails.
func (r *Reader) follow(ctx context.Context, src *source) error {
	if r.cluster == 0 {
		if err := r.list(ctx, src); err != nil {
			return err
		}
	}
	return r.watch(ctx, src)
}

// listAgainError ends a watch, but not the connection.
type listAgainError struct {
	why    error
	failed bool // and so not at once
	asked  bool // by the receiver, who bounds how often
}

func (e *listAgainError) Error() string { return fmt.Sprintf("list again: %v", e.why) }
func (e *listAgainError) Unwrap() error { return e.why }

// sinkError says that the sink did not take something in.
func sinkError(err error) error {
	if err == nil {
		return nil
	}
	return &listAgainError{why: err, failed: true}
}

// update changes the state and reports it.
func (r *Reader) update(change func(*State)) {
	r.mu.Lock()
	old := r.state
	change(&r.state)
	r.state.Error = wire.Shown(r.state.Error, maxError) // the source's own words, perhaps
	if r.state.Connected != old.Connected {
		r.state.Since = time.Now()
	}
	s := r.state
	r.mu.Unlock()
	if s.Connected != old.Connected {
		r.opt.Log.Info("source connection changed", "prefix", r.opt.Prefix, "endpoint", s.Endpoint, "connected", s.Connected, "error", s.Error)
	}
	if s != old && r.opt.OnState != nil {
		r.opt.OnState(s)
	}
}

// jitter spreads d by a quarter either way.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// source is a connected endpoint.
type source struct {
	conn     *grpc.ClientConn
	kv       pb.KVClient
	endpoint string
	opt      ReaderOptions
}

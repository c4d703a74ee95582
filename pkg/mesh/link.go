package mesh

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/version"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// link is the connection to one peer, and what we know of it. It lives as long
// as the rules it was made for.
type link struct {
	rules     *Rules
	prefix    string // of the mirror
	opt       *Options
	log       *slog.Logger
	claims    *Claims
	admission *Admission
	reader    *kvstore.Reader
	again     chan struct{} // a list is asked for
	began     time.Time     // to listen, by our clock

	stop context.CancelFunc
	done chan struct{} // closed when run has returned

	mu        sync.Mutex
	header    *wire.Cluster      // guarded by mu: what the peer says of itself
	recalled  []string           // guarded by mu: endpoints it announced before our store was lost
	heartbeat string             // guarded by mu: newest value
	beatAt    time.Time          // guarded by mu: when that changed, by our clock; zero: never
	marked    map[wire.Kind]bool // guarded by mu: kinds that were listed in full
	counts    map[wire.Kind]int  // guarded by mu: rows in the mirror, as of countedAt
	countedAt time.Time          // guarded by mu
	countedOf int                // guarded by mu: full lists by then
	stale     bool               // guarded by mu: rows changed since
}

const (
	maxLearnt = 16 // endpoints taken from the peer's own row
	maxNodes  = 32 // nodes of the peer that are tried after these
	// A peer that asks for lists by what it writes gets them no more often than this.
	relistGap   = 2 * time.Second
	relistShare = 10 // and not for more than a tenth of the time
)

func newLink(r *Rules, opt *Options, claims *Claims, gate *kvstore.Gate) *link {
	l := &link{rules: r, prefix: wire.MirrorPrefix(opt.Own.Cluster, r.Peer), opt: opt, claims: claims, began: opt.Now(), log: opt.Log.With("peer", r.Peer),
		again: make(chan struct{}, 1), done: make(chan struct{}), marked: map[wire.Kind]bool{}, stale: true}
	l.admission = NewAdmission(r, claims, l.relist, mirrorStore{l})
	sink := &peerSink{link: l, CopySink: kvstore.NewCopySink(opt.Store, l.prefix, kvstore.CopyOptions{
		Admit: func(_ kvstore.Part, rows []kvstore.Row) []kvstore.Row { return l.admission.Admit(rows) },
		Gone:  func(p kvstore.Part, keys []string) { l.admission.Gone(p.Kind, keys) },
		Tag:   r.tag(opt.Own),
	})}
	l.reader = kvstore.NewReader(kvstore.TLSDial(l.tls), l.endpoints, sink, kvstore.ReaderOptions{
		Prefix: wire.ExportPrefix(r.Peer), Kinds: admitted(), Gate: gate, Log: l.log,
		Resume: []wire.Kind{wire.KindCluster, wire.KindNode}}) // what Admission decides other rows by
	return l
}

// tag stands for all that rows are admitted by, apart from other rows: with
// another one everything has to be judged anew.
func (r *Rules) tag(own Own) string {
	h := sha256.Sum256(fmt.Append(nil, version.Version, own, r.PodCIDRs, r.NodeCIDRs, r.Namespaces, r.Limits))
	return hex.EncodeToString(h[:8])
}

func (l *link) tls() (*tls.Config, error) {
	if l.opt.Cert().Cert == nil {
		return nil, errors.New("our own client certificate is not there yet")
	}
	return pki.ClientConfig(l.rules.Peer, l.rules.CA, l.opt.Cert), nil
}

// run follows the peer until ctx ends. The mirror stays as it is then.
func (l *link) run(ctx context.Context) {
	defer close(l.done)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	helpers.Go(func() { l.relistNowAndThen(ctx) })
	helpers.Go(func() { l.recall(ctx) })
	if err := l.reader.Run(ctx); err != nil && ctx.Err() == nil {
		l.log.Error("reader ended", "error", err)
	}
}

// recall asks for endpoints that the peer announced before our store was lost.
func (l *link) recall(ctx context.Context) {
	l.mu.Lock()
	known := l.header != nil
	l.mu.Unlock()
	if known || l.opt.Recall == nil {
		return
	}
	endpoints := l.opt.Recall(ctx, l.rules.Peer)
	l.mu.Lock()
	l.recalled = endpoints
	l.mu.Unlock()
}

// relist asks for a new list. It never blocks.
func (l *link) relist() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// relistNowAndThen passes such requests on, at a bounded rate.
func (l *link) relistNowAndThen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.again:
		}
		before, start := l.reader.State().Lists, time.Now()
		l.reader.Relist()
		for l.reader.State().Lists == before && time.Since(start) < time.Minute && pause(ctx, 50*time.Millisecond) {
		}
		pause(ctx, max(relistGap, relistShare*time.Since(start)))
	}
}

// pause tells whether ctx still goes on after d.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// restore takes over what the mirror holds from before a restart: where the
// peer can be reached, and what its nodes claim.
func (l *link) restore(ctx context.Context, claims *Claims) error {
	resp, err := l.opt.Store.Get(ctx, l.prefix+wire.ClusterTail().String())
	if err != nil {
		return fmt.Errorf("read mirror of %s: %w", l.rules.Peer, err)
	}
	for _, kv := range resp.Kvs {
		if h, ref := judgeHeader(l.rules, kv.Value); ref == nil {
			l.setHeader(h)
		}
	}
	return eachNode(ctx, l.opt.Store, l.rules.Peer, l.prefix, func(n model.Node) {
		claims.Claim(n) // a refusal is found again by the first list
	})
}

func (l *link) setHeader(h wire.Cluster) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.header = &h
}

// beat notes a heartbeat. Only its change counts, and when we saw it.
func (l *link) beat(value []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if string(value) != l.heartbeat {
		l.heartbeat, l.beatAt = string(value), l.opt.Now()
	}
}

// mirrorStore answers from the mirror.
type mirrorStore struct{ l *link }

// Count implements Store. An error counts as full.
func (s mirrorStore) Count(k wire.Kind) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	key := s.l.prefix + wire.KindPrefix(k)
	resp, err := s.l.opt.Store.Get(ctx, key, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return s.l.rules.Limits.Rows[k]
	}
	return int(resp.Count)
}

// Size implements Store. An error counts as none.
func (s mirrorStore) Size(key string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := s.l.opt.Store.Get(ctx, s.l.prefix+key)
	if err != nil || len(resp.Kvs) == 0 {
		return -1
	}
	return len(resp.Kvs[0].Value)
}

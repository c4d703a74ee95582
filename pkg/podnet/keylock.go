package podnet

import (
	"context"
	"sync"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// keyLocks lets one verb at a time work on an attachment. The zero value is
// ready to use.
type keyLocks struct {
	mu   sync.Mutex
	held map[model.PodKey]chan struct{} // guarded by mu: closed when the key is free again
}

// lock waits for the key until ctx ends.
func (l *keyLocks) lock(ctx context.Context, key model.PodKey) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, taken := l.held[key]
		if !taken {
			if l.held == nil {
				l.held = map[model.PodKey]chan struct{}{}
			}
			done := make(chan struct{})
			l.held[key] = done
			l.mu.Unlock()
			return func() { l.unlock(key, done) }, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *keyLocks) unlock(key model.PodKey, done chan struct{}) {
	l.mu.Lock()
	delete(l.held, key)
	l.mu.Unlock()
	close(done)
}

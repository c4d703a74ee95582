package route

import (
	"errors"
	"fmt"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// batch collects requests with the keys that they are for.
type batch[K comparable] struct {
	verb     string
	gone     []error // errors that mean it is already so
	keys     []K
	requests []nl.Request
}

func (b *batch[K]) add(key K, r nl.Request) {
	b.keys = append(b.keys, key)
	b.requests = append(b.requests, r)
}

// send sends all requests in order, notes the failures and empties the batch.
func (b *batch[K]) send(c *nl.Conn, failed map[K]error) {
	if len(b.requests) == 0 {
		return
	}
	for i, err := range c.Batch(b.requests) {
		if err != nil && !b.harmless(err) {
			failed[b.keys[i]] = fmt.Errorf("%s %v: %w", b.verb, b.keys[i], err)
		}
	}
	b.keys, b.requests = nil, nil
}

func (b *batch[K]) harmless(err error) bool {
	for _, g := range b.gone {
		if errors.Is(err, g) {
			return true
		}
	}
	return false
}

// all says that nothing could be done.
func all[K, V comparable](err error, set map[K]V, del []K) map[K]error {
	failed := make(map[K]error, len(set)+len(del))
	for k := range set {
		failed[k] = err
	}
	for _, k := range del {
		failed[k] = err
	}
	return failed
}

package serve

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// trust is whom the mesh API believes: our own agents, and each usable Peer by
// the bundle in that very object.
type trust struct {
	own   mesh.Own
	keys  *keyring
	peers *state.Table[string, kube.Peer]
	wake  [2]<-chan struct{}
	now   atomic.Pointer[pki.Trust]
}

func newTrust(own mesh.Own, keys *keyring, peers *state.Table[string, kube.Peer]) *trust {
	return &trust{own: own, keys: keys, peers: peers, wake: [2]<-chan struct{}{peers.Subscribe(), keys.subscribe()}}
}

// current is asked at every handshake; nil until we have a certificate.
func (t *trust) current() *pki.Trust { return t.now.Load() }

// run keeps it up to date until ctx ends. After a change, recheck ends the
// connections of those who are no longer believed.
func (t *trust) run(ctx context.Context, recheck func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wake[0]:
		case <-t.wake[1]:
		}
		if next := t.compute(); next != nil {
			t.now.Store(next)
			recheck()
		}
	}
}

func (t *trust) compute() *pki.Trust {
	server, ca := t.keys.server()
	if server.Cert == nil {
		return nil
	}
	next := &pki.Trust{Server: server, Agents: []*x509.Certificate{ca.Cert}, Peers: map[string][]*x509.Certificate{}}
	for name, v := range mesh.Accept(t.own, slices.Collect(maps.Values(t.peers.Rows()))) {
		if v.Usable() {
			next.Peers[name] = v.Rules.CA
		}
	}
	return next
}

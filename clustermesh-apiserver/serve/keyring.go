package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// keyring is this cluster's mesh CA and the certificates it has issued. They
// live in Secrets, which the first replica makes; the server's own certificate
// lives in memory only.
type keyring struct {
	client  *kube.Client
	cluster string
	board   *status.Board
	log     *slog.Logger
	ready   chan struct{}   // closed when all certificates are there
	once    sync.Once       // closes it
	subs    []chan struct{} // capacity 1 each: woken when something may have been renewed

	mu        sync.Mutex
	ca        pki.Pair // guarded by mu
	serverTLS pki.Pair // guarded by mu
	peerTLS   pki.Pair // guarded by mu
	agentTLS  pki.Pair // guarded by mu: of our agents; empty until the Secret was read
}

const (
	renewEvery = time.Hour
	retryEvery = 2 * time.Second
)

func newKeyring(client *kube.Client, cluster string, board *status.Board, log *slog.Logger) *keyring {
	return &keyring{client: client, cluster: cluster, board: board, log: log,
		ready: make(chan struct{})}
}

// subscribe returns a channel that is woken by changes. Call it before run.
func (k *keyring) subscribe() <-chan struct{} {
	c := make(chan struct{}, 1)
	k.subs = append(k.subs, c)
	return c
}

// run makes or reads the certificates, and renews them in time, until ctx ends.
func (k *keyring) run(ctx context.Context) error {
	line := status.Key{Component: "certificates"}
	for {
		err := k.ensure(ctx)
		wait := renewEvery
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			wait = retryEvery
			if k.board.Set(line, status.Degraded, err.Error(), "it is retried; the Secrets clustermesh-* are in namespace "+k.client.Namespace) {
				k.log.Error("certificates not ready, retrying", "error", err)
			}
		default:
			k.board.Set(line, status.OK, "", "")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// wait returns when all certificates are there.
func (k *keyring) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ready:
		return nil
	}
}

// ensure brings everything up to date. Replicas may do so at the same time:
// who comes second reads what the first one wrote.
func (k *keyring) ensure(ctx context.Context) error {
	ca, err := k.secret(ctx, kube.SecretCA, nil, func() (pki.Pair, error) { return pki.NewCA(k.cluster, time.Now()) })
	if err != nil {
		return err
	}
	agent, err := k.secret(ctx, kube.SecretAgent, &ca, func() (pki.Pair, error) { return pki.IssueAgent(ca, time.Now()) })
	if err != nil {
		return err
	}
	peer, err := k.secret(ctx, kube.SecretPeer, &ca, func() (pki.Pair, error) { return pki.IssuePeer(ca, k.cluster, time.Now()) })
	if err != nil {
		return err
	}
	k.mu.Lock()
	server, same := k.serverTLS, k.ca.Cert != nil && k.ca.Cert.Equal(ca.Cert)
	k.mu.Unlock()
	if server.Cert == nil || !same || pki.NeedsRotation(server.Cert, time.Now()) {
		if server, err = pki.IssueServer(ca, k.cluster, time.Now()); err != nil {
			return fmt.Errorf("issue server certificate: %w", err)
		}
	}
	k.mu.Lock()
	k.agentTLS = agent
	k.mu.Unlock()
	k.set(ca, server, peer)
	return nil
}

// reader is what our own clients read our mesh API with: as agents do.
func (k *keyring) reader() (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.agentTLS.Cert == nil || k.ca.Cert == nil {
		return nil, errors.New("secret " + kube.SecretAgent + " has not been read yet")
	}
	pair := k.agentTLS
	return pki.ClientConfig(k.cluster, []*x509.Certificate{k.ca.Cert}, func() pki.Pair { return pair }), nil
}

// set puts certificates to use and wakes whoever depends on them.
func (k *keyring) set(ca, server, peer pki.Pair) {
	k.mu.Lock()
	k.ca, k.serverTLS, k.peerTLS = ca, server, peer
	k.mu.Unlock()
	k.once.Do(func() { close(k.ready) })
	for _, c := range k.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// restore takes certificates from the journal until Kubernetes has been read.
func (k *keyring) restore(m memory) error {
	bundle, err := pki.ParseBundle(m.CA)
	if err != nil {
		return err
	}
	server, err := m.Server.pair()
	if err != nil {
		return err
	}
	peer, err := m.Peer.pair()
	if err != nil {
		return err
	}
	k.set(pki.Pair{Cert: bundle[0]}, server, peer)
	return nil
}

// secret reads a certificate, and replaces it if it is not there, is to be
// renewed, or is not of ca. A CA itself is never replaced: peers know it.
func (k *keyring) secret(ctx context.Context, name string, ca *pki.Pair, issue func() (pki.Pair, error)) (pki.Pair, error) {
	for {
		s, there, err := k.client.GetSecret(ctx, name)
		if err != nil {
			return pki.Pair{}, err
		}
		if there {
			p, err := pki.ParsePair([]byte(s.Cert), []byte(s.Key))
			if err == nil && (ca == nil || current(p, ca.Cert, s.CA)) {
				return p, nil
			}
			if ca == nil {
				return p, fmt.Errorf("secret %s/%s: %w; restore it, or delete it and connect all peers anew", k.client.Namespace, name, err)
			}
		}
		p, err := issue()
		if err != nil {
			return p, fmt.Errorf("issue certificate for secret %s: %w", name, err)
		}
		done, err := k.put(ctx, name, p, ca, s.ResourceVersion)
		if err != nil {
			return p, err
		}
		if done {
			k.log.Info("certificate issued", "secret", name, "until", p.Cert.NotAfter)
			return p, nil
		}
	}
}

func (k *keyring) put(ctx context.Context, name string, p pki.Pair, ca *pki.Pair, version string) (bool, error) {
	key, err := p.KeyPEM()
	if err != nil {
		return false, err
	}
	s := kube.TLSSecret{Cert: string(p.CertPEM()), Key: string(key), ResourceVersion: version}
	if ca != nil {
		s.CA = string(ca.CertPEM())
	}
	return k.client.PutSecret(ctx, name, s)
}

// current tells whether a certificate is of ca, comes with it, and has time left.
func current(p pki.Pair, ca *x509.Certificate, bundle string) bool {
	return p.Cert.CheckSignatureFrom(ca) == nil && !pki.NeedsRotation(p.Cert, time.Now()) &&
		bundle == string(pki.EncodeBundle([]*x509.Certificate{ca}))
}

// peer is our certificate towards peers; empty until it is there.
func (k *keyring) peer() pki.Pair {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.peerTLS
}

// server is our certificate as a server, and the CA; both empty until they are there.
func (k *keyring) server() (server, ca pki.Pair) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.serverTLS, k.ca
}

// bundle is the CA certificate in PEM: what peers must trust.
func (k *keyring) bundle() []byte {
	_, ca := k.server()
	if ca.Cert == nil {
		return nil
	}
	return ca.CertPEM()
}

// Package etcdtest runs the store of a mesh API server, with its front, in
// tests: real etcd, real TLS, a port of its own on loopback.
package etcdtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

// Mesh is an API server of a cluster as far as its store goes.
type Mesh struct {
	Name  string
	CA    pki.Pair
	Store *etcdserver.Server
	Front *etcdserver.Front
	Addr  string // of the front; the same after a restart

	t     testing.TB
	dir   string
	trust *atomic.Pointer[pki.Trust]
	stop  func()
}

// Must ends the test on an error.
func Must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// New starts a store and its front. They end with the test.
func New(t testing.TB, name string) *Mesh {
	t.Helper()
	m := &Mesh{Name: name, t: t, dir: t.TempDir(), trust: &atomic.Pointer[pki.Trust]{}, CA: Must(pki.NewCA(name, time.Now()))(t)}
	m.trust.Store(&pki.Trust{
		Server: Must(pki.IssueServer(m.CA, name, time.Now()))(t),
		Agents: []*x509.Certificate{m.CA.Cert},
	})
	m.Start()
	t.Cleanup(func() { m.Stop() })
	return m
}

// Start serves again after Stop, with the same rows.
func (m *Mesh) Start() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m.Store = Must(etcdserver.Start(ctx, etcdserver.Options{Dir: m.dir, Log: slog.New(slog.DiscardHandler)}))(m.t)
	m.Front = etcdserver.NewFront(m.Name, m.Store.Backend(), etcdserver.FrontOptions{Trust: m.trust.Load})
	m.Addr, m.stop = serve(m.t, m.Front, m.Addr)
	front := m.stop
	m.stop = sync.OnceFunc(func() {
		front()
		if err := m.Store.Close(); err != nil {
			m.t.Errorf("close store: %v", err)
		}
		cancel()
	})
}

// serve runs a front on addr, or on a free port if that is empty.
func serve(t testing.TB, f *etcdserver.Front, addr string) (string, func()) {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l := Must(net.Listen("tcp", addr))(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Serve(ctx, l)
	}()
	return l.Addr().String(), sync.OnceFunc(func() { cancel(); <-done })
}

// Serve runs another front with m's trust over backend, until the test ends.
func (m *Mesh) Serve(backend etcdserver.Backend) (addr string) {
	m.t.Helper()
	f := etcdserver.NewFront(m.Name, backend, etcdserver.FrontOptions{Trust: m.trust.Load})
	addr, stop := serve(m.t, f, "")
	m.t.Cleanup(stop)
	return addr
}

// Stop ends front and store and keeps the rows.
func (m *Mesh) Stop() { m.stop() }

// Wipe makes the next Start begin with an empty store.
func (m *Mesh) Wipe() { m.dir = m.t.TempDir() }

// Trust makes ca the authority of peer; without one the peer is revoked.
func (m *Mesh) Trust(peer string, ca ...*x509.Certificate) {
	old := m.trust.Load()
	t := *old
	t.Peers = maps.Clone(old.Peers)
	if t.Peers == nil {
		t.Peers = map[string][]*x509.Certificate{}
	}
	delete(t.Peers, peer)
	if len(ca) > 0 {
		t.Peers[peer] = ca
	}
	m.trust.Store(&t)
	m.Front.Recheck()
}

// TLS is the configuration of a client that shows a certificate.
func (m *Mesh) TLS(own pki.Pair) *tls.Config {
	return pki.ClientConfig(m.Name, []*x509.Certificate{m.CA.Cert}, func() pki.Pair { return own })
}

// Agent is the certificate of m's agents.
func (m *Mesh) Agent() pki.Pair {
	m.t.Helper()
	return Must(pki.IssueAgent(m.CA, time.Now()))(m.t)
}

// ShareTrust makes m a replica of the API server that other is one of: clients
// of one are clients of both, whichever comes to be trusted.
func (m *Mesh) ShareTrust(other *Mesh) {
	m.t.Helper()
	m.CA, m.trust = other.CA, other.trust
	m.Stop()
	m.Start()
}

// Peer makes m trust a new peer and returns the peer's certificate.
func (m *Mesh) Peer(name string) pki.Pair {
	m.t.Helper()
	ca := Must(pki.NewCA(name, time.Now()))(m.t)
	m.Trust(name, ca.Cert)
	return Must(pki.IssuePeer(ca, name, time.Now()))(m.t)
}

// Dial dials fronts of m with a certificate.
func (m *Mesh) Dial(own pki.Pair) kvstore.Dial {
	conf := m.TLS(own)
	return kvstore.TLSDial(func() (*tls.Config, error) { return conf, nil })
}

// Client is etcd's own client on addr, with a certificate.
func (m *Mesh) Client(addr string, own pki.Pair) *clientv3.Client {
	m.t.Helper()
	c := Must(clientv3.New(clientv3.Config{
		Endpoints: []string{addr}, TLS: m.TLS(own), DialTimeout: 5 * time.Second,
	}))(m.t)
	m.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Put writes rows into the store: key, value, key, value, … An empty value deletes.
func (m *Mesh) Put(keyValues ...string) {
	m.t.Helper()
	for i := 0; i < len(keyValues); i += 2 {
		var err error
		if keyValues[i+1] == "" {
			_, err = m.Store.Client().Delete(m.t.Context(), keyValues[i])
		} else {
			_, err = m.Store.Client().Put(m.t.Context(), keyValues[i], keyValues[i+1])
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}

// Rows are all rows below prefix, without it.
func (m *Mesh) Rows(prefix string) map[string]string {
	m.t.Helper()
	return Must(kvstore.NewTarget(m.Store.Client(), prefix).List(m.t.Context()))(m.t)
}

// Eventually waits for a condition for up to 30 seconds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

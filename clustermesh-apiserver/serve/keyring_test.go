package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// TestRenewal: in 125 days of a server that is never restarted, every leaf is
// replaced in time, below the same CA, and handshakes show the new ones.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newKeyring(secretsOnly(), "us", status.NewBoard(time.Now), slog.New(slog.DiscardHandler))
		trust := newTrust(mesh.Own{Cluster: "us"}, keys, state.New[string, kube.Peer]())
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = keys.run(ctx) })
		running.Go(func() { _ = trust.run(ctx, func() {}) })
		synctest.Wait()

		ca := keys.bundle()
		serials := map[string]map[string]bool{"agent": {}, "peer": {}, "server": {}}
		for day := range 125 {
			_, known := keys.server()
			agent := stored(t, keys.client, kube.SecretAgent)
			for name, c := range map[string]*x509.Certificate{
				"agent": agent.Cert, "peer": stored(t, keys.client, kube.SecretPeer).Cert, "server": shown(t, trust, known.Cert, agent),
			} {
				serials[name][c.SerialNumber.String()] = true
				if left := time.Until(c.NotAfter); left < pki.LeafLife/4 {
					t.Fatalf("day %d: the %s's certificate has %v left", day, name, left)
				}
			}
			if got := keys.peer().Cert; !got.Equal(stored(t, keys.client, kube.SecretPeer).Cert) {
				t.Fatalf("day %d: peers are shown another certificate than is stored", day)
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
		}
		for name, s := range serials {
			if len(s) != 3 { // the first one, and another every 60 days
				t.Errorf("%d certificates of the %s in 125 days, want 3", len(s), name)
			}
		}
		if string(keys.bundle()) != string(ca) {
			t.Error("the CA was replaced, which every peer knows")
		}
	})
}

// secretsOnly is a client of a Kubernetes that keeps Secrets and gives each
// write a version, which client-go's fake does not.
func secretsOnly() *kube.Client {
	f := fake.NewClientset()
	version := 0
	f.PrependReactor("*", "secrets", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if write, ok := a.(interface{ GetObject() runtime.Object }); ok {
			version++
			write.GetObject().(*corev1.Secret).ResourceVersion = strconv.Itoa(version)
		}
		return false, nil, nil
	})
	return &kube.Client{Interface: f, Namespace: "system"}
}

func stored(t *testing.T, c *kube.Client, name string) pki.Pair {
	t.Helper()
	s, ok, err := c.GetSecret(t.Context(), name)
	if err != nil || !ok {
		t.Fatalf("secret %s: %v, %v", name, ok, err)
	}
	p, err := pki.ParsePair([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shown is the certificate that the server shows to a client that believes ca.
func shown(t *testing.T, trust *trust, ca *x509.Certificate, own pki.Pair) *x509.Certificate {
	t.Helper()
	a, b := net.Pipe()
	server := tls.Server(a, pki.ServerConfig(trust.current, time.Now))
	client := tls.Client(b, pki.ClientConfig("us", []*x509.Certificate{ca}, func() pki.Pair { return own }))
	refused := make(chan error, 1)
	go func() { refused <- server.Handshake() }()
	err := client.Handshake()
	if err := <-refused; err != nil {
		t.Fatalf("the agent is refused: %v", err)
	}
	if err != nil {
		t.Fatalf("the server is refused: %v", err)
	}
	_ = a.Close()
	_ = b.Close()
	return client.ConnectionState().PeerCertificates[0]
}

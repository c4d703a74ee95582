// Package kubetest runs a real Kubernetes API server, with its etcd, for tests.
// The programs are those that the lab builds (make lab-build), or lie in
// $LAB_BIN; a test without them is skipped, and fails where $CI is set.
package kubetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/clustermesh/clustermesh/pkg/kube"
)

// Server is an API server that lets everybody do everything.
type Server struct {
	Config     *rest.Config
	Kubeconfig string // path of a file
	Etcd       string // URL of its etcd, which stays when the API server stops

	t        testing.TB
	bin, dir string
	addr     string // of the API server
	api      *exec.Cmd
}

// Namespace is where clustermesh's own objects are; Start makes it.
const Namespace = "clustermesh-system"

const token = "test-token"

// Start runs a server until the test ends. It knows our own resources, without
// their schemas.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, bin: find(t), dir: t.TempDir(), addr: free(t), Etcd: "http://" + free(t)}
	s.write("tokens.csv", token+",admin,admin,system:masters\n")
	s.write("sa.key", saKey(t))
	s.Config = &rest.Config{Host: "https://" + s.addr, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	s.Kubeconfig = s.write("kubeconfig", fmt.Sprintf(kubeconfig, s.addr, token))
	peer := "http://" + free(t)
	s.run("etcd", "--data-dir", filepath.Join(s.dir, "etcd"), "--listen-client-urls", s.Etcd, "--advertise-client-urls", s.Etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--unsafe-no-fsync")
	s.Resume()
	s.create("/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"`+Namespace+`"}}`)
	for kind, plural := range map[string]string{"Peer": "peers", "LoadBalancerPool": "loadbalancerpools"} {
		s.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", strings.NewReplacer("KIND", kind, "PLURAL", plural, "SINGULAR", strings.ToLower(kind)).Replace(crd))
		s.await("the resource "+plural, func(ctx context.Context, c *kube.Client) error {
			return c.Discovery().RESTClient().Get().AbsPath("/apis/clustermesh.io/v1alpha1/" + plural).Do(ctx).Error()
		})
	}
	return s
}

// Client returns a client.
func (s *Server) Client() *kube.Client {
	s.t.Helper()
	c, err := kube.New(s.Config, "test", Namespace)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Stop kills the API server. Its objects stay.
func (s *Server) Stop() {
	_ = s.api.Process.Kill()
	_ = s.api.Wait()
}

// Resume runs the API server again after Stop, and waits until it is ready.
func (s *Server) Resume() {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(s.addr)
	s.api = s.run("kube-apiserver", "--etcd-servers="+s.Etcd, "--bind-address="+host, "--secure-port="+port,
		"--cert-dir="+filepath.Join(s.dir, "certs"), "--service-cluster-ip-range=10.96.0.0/20",
		"--service-account-issuer=https://kubernetes", "--service-account-key-file="+filepath.Join(s.dir, "sa.key"),
		"--service-account-signing-key-file="+filepath.Join(s.dir, "sa.key"), "--disable-admission-plugins=ServiceAccount",
		"--authorization-mode=AlwaysAllow", "--token-auth-file="+filepath.Join(s.dir, "tokens.csv"))
	s.await("the API server", func(ctx context.Context, c *kube.Client) error {
		return c.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (s *Server) await(what string, try func(context.Context, *kube.Client) error) {
	s.t.Helper()
	c := s.Client()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		err := try(ctx, c)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(s.dir, "kube-apiserver.log"))
			s.t.Fatalf("%s is not ready: %v\n%s", what, err, log[max(0, len(log)-2000):])
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (s *Server) create(path, body string) {
	s.t.Helper()
	err := s.Client().Discovery().RESTClient().Verb(http.MethodPost).AbsPath(path).
		SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(s.t.Context()).Error()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) run(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, s.dir
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (s *Server) write(name, content string) string {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// find looks for the programs.
func find(t testing.TB) string {
	t.Helper()
	cache, _ := os.UserCacheDir()
	dirs, _ := filepath.Glob(filepath.Join(cache, "clustermesh-lab", "*", "bin"))
	for _, dir := range append([]string{os.Getenv("LAB_BIN")}, dirs...) {
		_, err1 := os.Stat(filepath.Join(dir, "kube-apiserver"))
		_, err2 := os.Stat(filepath.Join(dir, "etcd"))
		if dir != "" && err1 == nil && err2 == nil {
			return dir
		}
	}
	const missing = "needs kube-apiserver and etcd: make lab-build, or set LAB_BIN to their directory"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// free is a loopback address that nobody listens on.
func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func saKey(t testing.TB) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	_ = pem.Encode(&b, &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}) // a Builder takes all
	return b.String()
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`

const crd = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"PLURAL.clustermesh.io"},
"spec":{"group":"clustermesh.io","scope":"Cluster","names":{"kind":"KIND","listKind":"KINDList","plural":"PLURAL","singular":"SINGULAR"},
"versions":[{"name":"v1alpha1","served":true,"storage":true,"subresources":{"status":{}},
"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

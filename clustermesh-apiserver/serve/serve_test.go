package serve_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/serve"
	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// cluster is a whole API server of cluster us in this process, beside a real
// Kubernetes API server.
type cluster struct {
	t    *testing.T
	k8s  *kubetest.Server
	c    *kube.Client
	opt  serve.Options
	stop func()
}

func newCluster(t *testing.T) *cluster {
	k8s := kubetest.Start(t)
	conf := config.Default()
	conf.Cluster = config.Cluster{Name: "us", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	conf.Kubernetes.Host = "unused"
	conf.IPAM.Mode = config.IPAMClusterPool
	mesh := free(t)
	conf.APIServer.Advertise = []string{mesh}
	if err := conf.Validate(); err != nil {
		t.Fatal(err)
	}
	return &cluster{t: t, k8s: k8s, c: k8s.Client(), opt: serve.Options{Config: conf, DataDir: t.TempDir(), Socket: filepath.Join(t.TempDir(), "sock"),
		MeshListen: mesh, Listen: free(t), Kubeconfig: k8s.Kubeconfig, Namespace: kubetest.Namespace, Pod: "us-0", Node: "o1"}}
}

func free(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the server; it ends before the test does.
func (u *cluster) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := serve.Run(ctx, u.opt, io.Discard); !errors.Is(err, context.Canceled) {
			u.t.Errorf("serve: %v", err)
		}
	})
	u.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	u.t.Cleanup(u.stop)
}

func (u *cluster) eventually(what string, ok func() bool) {
	u.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			u.t.Fatalf("timeout: %s\n%+v", what, u.status())
		}
	}
}

func (u *cluster) node(name, addr string) {
	u.t.Helper()
	_, err := u.c.CoreV1().Nodes().Create(u.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err == nil { // a patch, since the cluster pool writes to the node as well
		patch := fmt.Appendf(nil, `{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, addr)
		_, err = u.c.CoreV1().Nodes().Patch(u.t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

// ask sends a request to the status socket.
func (u *cluster) ask(method, path string, body io.Reader) []byte {
	h := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", u.opt.Socket)
	}}}
	req, err := http.NewRequestWithContext(u.t.Context(), method, "http://server"+path, body)
	if err != nil {
		u.t.Fatal(err)
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil // not up yet
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return b
}

func (u *cluster) status() (r status.APIServer) {
	_ = json.Unmarshal(u.ask(http.MethodGet, "/v1/status", nil), &r)
	return r
}

func (u *cluster) ready() bool {
	resp, err := http.Get("http://" + u.opt.Listen + "/readyz")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// agent reads the mesh API as an agent does.
func (u *cluster) agent() *clientv3.Client {
	u.t.Helper()
	s, ok, err := u.c.GetSecret(u.t.Context(), kube.SecretAgent)
	if err != nil || !ok {
		u.t.Fatal(ok, err)
	}
	own, err := pki.ParsePair([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		u.t.Fatal(err)
	}
	ca, err := pki.ParseBundle([]byte(s.CA))
	if err != nil {
		u.t.Fatal(err)
	}
	return u.client(clientv3.Config{TLS: pki.ClientConfig("us", ca, func() pki.Pair { return own })})
}

func (u *cluster) client(conf clientv3.Config) *clientv3.Client {
	conf.Endpoints, conf.DialTimeout, conf.Logger = []string{u.opt.MeshListen}, 5*time.Second, zap.NewNop()
	c, err := clientv3.New(conf)
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = c.Close() })
	return c
}

// has tells whether a key is served.
func (u *cluster) has(c *clientv3.Client, key string) bool {
	ctx, cancel := context.WithTimeout(u.t.Context(), 3*time.Second)
	defer cancel()
	resp, err := c.Get(ctx, key)
	return err == nil && len(resp.Kvs) == 1
}

func (u *cluster) connect(p *etcdtest.Mesh) {
	u.t.Helper()
	obj := &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Spec: v1alpha1.PeerSpec{Endpoints: []string{p.Addr},
		Trust: v1alpha1.PeerTrust{CABundle: string(p.CA.CertPEM())}, Import: v1alpha1.Import{PodCIDRs: []string{"10.2.0.0/16"}}}}
	if _, err := u.c.Peers.Create(u.t.Context(), obj, metav1.CreateOptions{}); err != nil {
		u.t.Fatal(err)
	}
}

func nodeRow(addr, pods string) string {
	return string(wire.EncodeNode(model.Node{Internal: model.Addrs{V4: netip.MustParseAddr(addr)}, PodCIDRs: model.Prefixes{V4: netip.MustParsePrefix(pods)}}))
}

// TestServe walks through the life of an API server and one peer.
func TestServe(t *testing.T) {
	t.Run("embedded etcd", func(t *testing.T) { testServe(t, newCluster(t)) })
	t.Run("external etcd", func(t *testing.T) {
		u := newCluster(t)
		u.opt.EtcdEndpoints = []string{u.k8s.Etcd}
		testServe(t, u)
		if files, err := os.ReadDir(u.opt.DataDir); err != nil || len(files) > 0 {
			t.Errorf("beside an external etcd it keeps %v, %v", files, err)
		}
	})
}

func testServe(t *testing.T, u *cluster) {
	u.node("o1", "198.51.100.1")
	u.start()
	u.eventually("ready", u.ready)
	agent := u.agent()
	if !u.has(agent, "/clustermesh/v1/us/node/o1") || !u.has(agent, "/clustermesh/v1/us/synced/node") {
		t.Fatal("it is ready, but our own rows are not served")
	}
	u.eventually("the cluster pool gives o1 a range", func() bool {
		n, err := u.c.CoreV1().Nodes().Get(t.Context(), "o1", metav1.GetOptions{})
		return err == nil && n.Spec.PodCIDR == "10.1.0.0/24"
	})

	east := etcdtest.New(t, "east")
	at := wire.ExportPrefix("east")
	east.Put(at+"cluster", string(wire.Cluster{Name: "east", Product: "9"}.Encode()), at+"heartbeat", string(wire.Heartbeat{Count: 1}.Encode()),
		at+"node/n1", nodeRow("192.0.2.1", "10.2.1.0/24"), at+"node/evil", nodeRow("198.51.100.1", "10.2.2.0/24"))
	for _, k := range wire.Kinds() {
		east.Put(at+"synced/"+string(k), string(wire.Synced{Incarnation: "1"}.Encode()))
	}
	probe := func(state string, want int) {
		t.Helper()
		body, _ := json.Marshal(serve.ProbeRequest{Endpoint: east.Addr, Cluster: "east", CABundle: string(east.CA.CertPEM()), TimeoutMillis: 5000})
		var p status.Probe
		if err := json.Unmarshal(u.ask(http.MethodPost, "/v1/probe", strings.NewReader(string(body))), &p); err != nil {
			t.Fatal(err)
		}
		if !p.Reachable || p.Error != "" || len(p.Steps) != want {
			t.Errorf("%s: probe says %+v, want %d steps", state, p, want)
		}
	}
	probe("before connect", 5) // reachable, not authorised
	bundle, err := pki.ParseBundle([]byte(u.status().CABundle))
	if err != nil {
		t.Fatal(err)
	}
	east.Trust("us", bundle...)
	probe("after connect", 6)

	fromEast := u.client(clientv3.Config{TLS: pki.ClientConfig("us", bundle, func() pki.Pair {
		return etcdtest.Must(pki.IssuePeer(east.CA, "east", time.Now()))(t)
	})})
	if u.has(fromEast, "/clustermesh/v1/us/cluster") {
		t.Fatal("a stranger may read")
	}
	u.connect(east)
	u.eventually("the Peer's status says how it is", func() bool {
		p, err := u.c.Peers.Get(t.Context(), "east", metav1.GetOptions{})
		return err == nil && meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionAccepted) &&
			meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionConnected) &&
			meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionSynced) &&
			meta.IsStatusConditionFalse(p.Status.Conditions, v1alpha1.ConditionAdmitted) &&
			p.Status.Nodes == 1 && p.Status.Announced.Version == "9" && p.Status.Refused[0].Reason == "address-conflict" && p.Status.LastHeartbeat != nil
	})
	u.eventually("the peer may read", func() bool { return u.has(fromEast, "/clustermesh/v1/us/node/o1") })
	if u.has(fromEast, "/clustermesh/mirror/v1/us/east/node/n1") {
		t.Error("a peer may read the mirror")
	}
	if !u.has(agent, "/clustermesh/mirror/v1/us/east/node/n1") || u.has(agent, "/clustermesh/mirror/v1/us/east/node/evil") {
		t.Error("the mirror is not what was admitted")
	}
	u.node("o2", "198.51.100.2")
	u.eventually("a new node is published", func() bool { return u.has(agent, "/clustermesh/v1/us/node/o2") })

	// Kubernetes is away, and so is our server for a moment: it comes back, serves
	// what it had, and follows the peer. Without Kubernetes' word our own node's
	// address is still ours. An external etcd is written by the leader, whom
	// Kubernetes has to elect, so there only our server is away.
	if len(u.opt.EtcdEndpoints) == 0 {
		u.k8s.Stop()
	}
	u.stop()
	east.Put(at+"node/n2", nodeRow("192.0.2.2", "10.2.3.0/24"), at+"node/n1", "")
	u.start()
	u.eventually("what changed meanwhile is caught up with", func() bool {
		return u.has(agent, "/clustermesh/mirror/v1/us/east/node/n2") && !u.has(agent, "/clustermesh/mirror/v1/us/east/node/n1")
	})
	u.eventually("the peer may still read", func() bool { return u.has(fromEast, "/clustermesh/v1/us/node/o2") })
	if u.has(agent, "/clustermesh/mirror/v1/us/east/node/evil") {
		t.Error("a row with our own node's address was admitted")
	}
	if len(u.opt.EtcdEndpoints) == 0 {
		u.k8s.Resume()
	}
	u.eventually("ready again", u.ready)

	if err := u.c.Peers.Delete(t.Context(), "east", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	u.eventually("nothing of the peer is left", func() bool {
		resp, err := agent.Get(t.Context(), "/clustermesh/mirror/v1/us/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && resp.Count == 0 && !u.has(fromEast, "/clustermesh/v1/us/cluster") && len(east.Front.Conns()) == 0
	})
}

// Everything that is wrong with the command line is said at once, by name.
func TestParseOptions(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no file":    {[]string{"--config", "/nonexistent", "--namespace", "x", "--pod", "y"}, "/nonexistent"},
		"no pod":     {[]string{"--namespace", "x", "--pod", ""}, "--pod must be given"},
		"an operand": {[]string{"--namespace", "x", "--pod", "y", "z"}, `argument "z"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := serve.ParseOptions(c.args, io.Discard)
			if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

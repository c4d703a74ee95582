package mesh_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ours is our own API server's store and its set of peers.
type ours struct {
	*etcdtest.Mesh
	t     *testing.T
	cert  pki.Pair
	peers *state.Table[string, kube.Peer]
	nodes *state.Table[model.NodeKey, model.Node]
	objs  map[string]kube.Peer
	set   *mesh.Set
	log   *slog.Logger
	stop  func()

	callers func(peer string) []netip.Addr // nil: none
}

func newOurs(t *testing.T) *ours {
	o := &ours{Mesh: etcdtest.New(t, "us"), t: t, peers: state.New[string, kube.Peer](), nodes: state.New[model.NodeKey, model.Node](), objs: map[string]kube.Peer{}, log: slog.New(slog.DiscardHandler)}
	o.cert = etcdtest.Must(pki.IssuePeer(o.CA, "us", time.Now()))(t)
	o.peers.Expect(kube.Source)
	o.nodes.Replace(kube.Source, map[model.NodeKey]model.Node{})
	return o
}

// start runs a new set, as after a restart; it ends before the test does.
func (o *ours) start() {
	o.set = mesh.NewSet(mesh.Options{
		Own:   mesh.Own{Cluster: "us", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
		Store: o.Store.Client(), Cert: func() pki.Pair { return o.cert }, Log: o.log, Now: time.Now, Callers: o.callers,
	}, o.peers, o.nodes)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = o.set.Run(ctx) })
	o.stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	o.t.Cleanup(o.stop)
}

// connect writes a Peer object for a cluster whose pods are in 10.n.0.0/16.
func (o *ours) connect(p *etcdtest.Mesh, n int, edit func(*v1alpha1.PeerSpec)) {
	obj := &v1alpha1.Peer{Spec: v1alpha1.PeerSpec{
		Endpoints: []string{p.Addr},
		Trust:     v1alpha1.PeerTrust{CABundle: string(pki.EncodeBundle([]*x509.Certificate{p.CA.Cert}))},
		Import:    v1alpha1.Import{PodCIDRs: []string{fmt.Sprintf("10.%d.0.0/16", n)}},
	}}
	obj.Name, obj.UID = p.Name, "uid"
	if edit != nil {
		edit(&obj.Spec)
	}
	o.objs[p.Name] = kube.PeerRow(obj)
	o.peers.Replace(kube.Source, maps.Clone(o.objs))
}

func (o *ours) disconnect(name string) {
	delete(o.objs, name)
	o.peers.Replace(kube.Source, maps.Clone(o.objs))
}

// mirror lists the keys of a peer's mirrored rows without marks.
func (o *ours) mirror(peer string) []string {
	rows := o.Rows(wire.MirrorPrefix("us", peer))
	maps.DeleteFunc(rows, func(k, _ string) bool { return strings.HasPrefix(k, "synced/") })
	return slices.Sorted(maps.Keys(rows))
}

func (o *ours) wantMirror(peer string, keys ...string) {
	o.t.Helper()
	var last []string
	deadline := time.Now().Add(20 * time.Second)
	for !slices.Equal(last, keys) {
		if time.Now().After(deadline) {
			o.t.Fatalf("mirror of %s: %s\n%+v", peer, cmp.Diff(keys, last), o.state(peer))
		}
		time.Sleep(5 * time.Millisecond)
		last = o.mirror(peer)
	}
}

func (o *ours) state(peer string) mesh.State {
	for _, s := range o.set.States(context.Background()) {
		if s.Name == peer {
			return s
		}
	}
	return mesh.State{}
}

// wantSynced waits until the list of a peer has ended: only then can it be resumed.
func (o *ours) wantSynced(peer string) {
	o.t.Helper()
	etcdtest.Eventually(o.t, peer+" is synced", func() bool { return o.state(peer).Synced })
}

// revision is when a mirrored row was last written.
func (o *ours) revision(peer, key string) int64 {
	resp, err := o.Store.Client().Get(o.t.Context(), wire.MirrorPrefix("us", peer)+key)
	if err != nil || len(resp.Kvs) != 1 {
		o.t.Fatalf("%s of %s: %d rows, %v", key, peer, len(resp.Kvs), err)
	}
	return resp.Kvs[0].ModRevision
}

// newPeer is another cluster that lets us in.
func newPeer(o *ours, name string) *etcdtest.Mesh {
	p := etcdtest.New(o.t, name)
	p.Trust("us", o.CA.Cert)
	return p
}

// publish writes a cluster's header and nodes, given as name and addresses.
func publish(p *etcdtest.Mesh, nodes ...[2]string) {
	at := wire.ExportPrefix(p.Name)
	p.Put(at+"cluster", string(wire.Cluster{Name: p.Name, Product: "test"}.Encode()), at+"heartbeat", string(wire.Heartbeat{Count: 1}.Encode()))
	for _, n := range nodes {
		p.Put(at+"node/"+n[0], nodeValue(n[1]))
	}
}

func nodeValue(text string) string {
	n := model.Node{VXLANPort: 8472, VNI: 7473}
	for _, s := range strings.Fields(text) {
		if p, err := netip.ParsePrefix(s); err == nil {
			n.PodCIDRs = n.PodCIDRs.Add(p)
		} else {
			n.Internal = n.Internal.Add(netip.MustParseAddr(s))
		}
	}
	return string(wire.EncodeNode(n))
}

func vouch(p *etcdtest.Mesh) {
	for _, k := range wire.Kinds() {
		p.Put(wire.ExportPrefix(p.Name)+wire.SyncedTail(k).String(), string(wire.Synced{Incarnation: "1"}.Encode()))
	}
}

var twoNodes = [][2]string{{"n1", "192.0.2.1 10.2.1.0/24"}, {"n2", "192.0.2.2 10.2.2.0/24"}}

func TestConnectAndDisconnect(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	etcdtest.Eventually(t, "connected and synced", func() bool {
		s := o.state("east")
		return s.Connected && s.Synced && s.HeartbeatSeconds >= 0 && s.Counts["node"] == 2 && s.Header != nil && s.Header.Product == "test" && s.Refused == nil
	})

	at := wire.ExportPrefix("east")
	east.Put(at+"node/n3", nodeValue("192.0.2.3 10.2.3.0/24"), at+"node/n1", "")
	o.wantMirror("east", "cluster", "heartbeat", "node/n2", "node/n3")

	o.disconnect("east") // invariant M7
	o.wantMirror("east")
	etcdtest.Eventually(t, "no connection is left", func() bool { return len(east.Front.Conns()) == 0 })
	etcdtest.Eventually(t, "nothing is left behind", func() bool { return len(o.Rows("/clustermesh/")) == 0 })
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n2", "node/n3")
}

// TestSilentPeer: invariant M5.
func TestSilentPeer(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.wantSynced("east")
	rev := o.revision("east", "node/n1")
	east.Stop()
	etcdtest.Eventually(t, "the cut is noticed", func() bool { s := o.state("east"); return !s.Connected && s.Error != "" && s.Synced })
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	east.Start()
	east.Trust("us", o.CA.Cert)
	etcdtest.Eventually(t, "it is back", func() bool { return o.state("east").Connected })
	east.Put(wire.ExportPrefix("east")+"node/n3", nodeValue("192.0.2.3 10.2.3.0/24"))
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2", "node/n3")
	if now := o.revision("east", "node/n1"); now != rev {
		t.Errorf("a row that did not change was written again: revision %d, then %d", rev, now)
	}
}

// TestWipedPeer: invariant M6. A peer whose etcd was wiped loses nothing until
// it vouches for its rows again.
func TestWipedPeer(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.wantSynced("east")
	incarnation := o.state("east").Incarnation

	east.Stop()
	east.Wipe()
	east.Start()
	etcdtest.Eventually(t, "the new store is noticed", func() bool { s := o.state("east"); return s.Connected && s.Incarnation != incarnation })
	publish(east, twoNodes[0])
	east.Put(wire.ExportPrefix("east")+"node/n3", nodeValue("192.0.2.3 10.2.3.0/24"))
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2", "node/n3")
	vouch(east)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n3")
}

// TestRestart: what changed while we were away is caught up with, and nothing
// else is touched. Mirrors of nobody are deleted, once it is known who is a peer.
func TestRestart(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.wantSynced("east")
	o.stop()
	rev := o.revision("east", "node/n1")

	// An endpoint behind our back: a list would delete it, a resumed reader does not look.
	o.Put(wire.MirrorPrefix("us", "east")+"endpoint/default/0000000000000007/10.2.1.9", string(wire.Endpoint{Node: "n1"}.Encode()))
	at := wire.ExportPrefix("east")
	east.Put(at+"node/n2", "", at+"node/n3", nodeValue("192.0.2.3 10.2.3.0/24"))
	o.Put(wire.MirrorPrefix("us", "gone")+"node/x", nodeValue("192.0.2.9"), "/clustermesh/mirrored/v1/us/gone", "x")
	o.peers = state.New[string, kube.Peer]()
	o.peers.Expect(kube.Source)
	o.start()
	etcdtest.Eventually(t, "the set has looked once", func() bool { return o.set.Verdicts() != nil })
	o.wantMirror("gone", "node/x")
	o.peers.Replace(kube.Source, maps.Clone(o.objs))
	o.wantMirror("east", "cluster", "endpoint/default/0000000000000007/10.2.1.9", "heartbeat", "node/n1", "node/n3")
	o.wantMirror("gone")
	if s := o.state("east"); !s.Synced || s.Counts["endpoint"] != 1 {
		t.Errorf("resumed, but %+v", s)
	}
	if now := o.revision("east", "node/n1"); now != rev {
		t.Errorf("a row that did not change was written again: revision %d, then %d", rev, now)
	}
}

// Other rules than before the restart: everything is judged anew.
func TestRestartWithOtherRules(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.wantSynced("east")
	o.stop()
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Import.PodCIDRs = []string{"10.2.1.0/24"} })
	o.start()
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
	o.wantSynced("east")
	o.stop()
	// A node of ours took the address meanwhile.
	key := model.NodeKey{Cluster: "us", Name: "o1"}
	o.nodes.Update(kube.Source, map[model.NodeKey]model.Node{key: {Key: key, Internal: model.Addrs{V4: netip.MustParseAddr("192.0.2.1")}}}, nil)
	east.Stop() // and nobody could be asked
	o.start()
	o.wantMirror("east", "cluster", "heartbeat")
}

// TestHostilePeer: invariant M4. A peer that lies in its rows, its header or its
// protocol harms nobody else, nor what was admitted of it before.
func TestHostilePeer(t *testing.T) {
	o := newOurs(t)
	east, west := newPeer(o, "east"), newPeer(o, "west")
	for _, p := range []*etcdtest.Mesh{east, west} {
		vouch(p)
	}
	publish(west, [2]string{"w1", "203.0.113.1 10.3.1.0/24"})
	publish(east, twoNodes...)
	o.start()
	o.connect(west, 3, nil)
	o.wantMirror("west", "cluster", "heartbeat", "node/w1")
	rev := o.revision("west", "node/w1")
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")

	at := wire.ExportPrefix("east")
	east.Put(at+"node/everything", nodeValue("192.0.2.10 0.0.0.0/0"),
		at+"node/garbage", "\x01\xff\xff",
		at+"node/stolen", nodeValue("203.0.113.1 10.2.9.0/24"),
		at+"node/theirs", nodeValue("192.0.2.11 10.3.1.0/24"),
		at+"node/UPPER", nodeValue("192.0.2.12"),
		at+"slice/default/huge", strings.Repeat("x", 300<<10),
		at+"unheard-of/x", "y",
		at+"node/n2", nodeValue("192.0.2.2 10.1.0.0/24"), // an admitted one that turns bad is withdrawn
		at+"node/n3", nodeValue("192.0.2.3 10.2.3.0/24"))
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n3")
	etcdtest.Eventually(t, "refusals are counted by reason", func() bool {
		got := map[string]int64{}
		for _, r := range o.state("east").Refused {
			got[r.Reason] = r.Count
		}
		return maps.Equal(got, map[string]int64{"cidr-not-allowed": 3, "bad-value": 1, "address-conflict": 1, "bad-key": 1, "too-large": 1})
	})
	east.Put(at+"node/garbage", "", at+"node/stolen", "", at+"node/everything", "", at+"node/theirs", "", at+"node/UPPER", "", at+"slice/default/huge", "")
	etcdtest.Eventually(t, "what is gone is no longer counted", func() bool {
		r := o.state("east").Refused
		return len(r) == 1 && r[0].Reason == "cidr-not-allowed" && r[0].Count == 1 && r[0].Example == "node/n2"
	})

	// A header that names another cluster stops the peer; its rows stay as they were.
	east.Put(at+"cluster", string(wire.Cluster{Name: "west"}.Encode()), at+"node/n1", "")
	etcdtest.Eventually(t, "the header is refused", func() bool {
		s := o.state("east")
		return strings.Contains(s.Error, "foreign-cluster") && slices.ContainsFunc(s.Refused, func(r status.Refusal) bool { return r.Reason == "foreign-cluster" })
	})
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n3")
	east.Put(at+"cluster", string(wire.Cluster{Name: "east"}.Encode()))
	o.wantMirror("east", "cluster", "heartbeat", "node/n3")
	o.wantMirror("west", "cluster", "heartbeat", "node/w1")
	if now := o.revision("west", "node/w1"); now != rev || o.state("west").Refused != nil {
		t.Errorf("west was disturbed: revision %d, then %d; %+v", rev, now, o.state("west"))
	}
}

// A narrower Peer withdraws what it no longer allows and touches nothing else.
func TestSpecChanges(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Import.PodCIDRs = []string{"10.2.1.0/24"} })
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Import.NodeCIDRs = []string{"192.0.2.2/32"} })
	o.wantMirror("east", "cluster", "heartbeat", "node/n2")
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")

	// Trust that can't be read: nobody is dialled, rows stay.
	rev := o.revision("east", "node/n1")
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Trust.CABundle = "mistyped" })
	etcdtest.Eventually(t, "it is not dialled", func() bool {
		s := o.state("east")
		return s.Rejected != nil && !s.Connected && len(east.Front.Conns()) == 0
	})
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	o.connect(east, 2, nil)
	etcdtest.Eventually(t, "it is dialled again", func() bool { return o.state("east").Synced })
	if now := o.revision("east", "node/n1"); now != rev {
		t.Errorf("a row that did not change was written again: revision %d, then %d", rev, now)
	}
	// A range that is ours: the Peer counts as absent.
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Import.PodCIDRs = []string{"10.1.0.0/17"} })
	o.wantMirror("east")
}

// Who held an address before a restart holds it afterwards, whoever lists first.
func TestClaimsSurviveRestart(t *testing.T) {
	o := newOurs(t)
	east, west := newPeer(o, "east"), newPeer(o, "west")
	publish(west, [2]string{"w1", "192.0.2.1 10.3.1.0/24"})
	publish(east)
	vouch(east)
	vouch(west)
	o.start()
	o.connect(east, 2, nil)
	o.connect(west, 3, nil)
	o.wantMirror("west", "cluster", "heartbeat", "node/w1")
	o.wantSynced("west")
	o.wantSynced("east")
	o.stop()
	west.Stop()
	publish(east, [2]string{"n1", "192.0.2.1 10.2.1.0/24"}) // takes the chance
	o.start()
	etcdtest.Eventually(t, "the thief is refused", func() bool {
		r := o.state("east").Refused
		return len(r) == 1 && r[0].Reason == "address-conflict"
	})
	o.wantMirror("west", "cluster", "heartbeat", "node/w1")
	o.disconnect("west")
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
}

// An own node that gets a peer's node's address wins.
func TestOwnNodeWins(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	publish(east, twoNodes...)
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
	key := model.NodeKey{Cluster: "us", Name: "o1"}
	o.nodes.Update(kube.Source, map[model.NodeKey]model.Node{key: {Key: key, Internal: model.Addrs{V4: netip.MustParseAddr("192.0.2.2")}}}, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
	o.nodes.Update(kube.Source, nil, []model.NodeKey{key})
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
}

// TestAnnouncedEndpoint: a server that moves is followed to the address that the
// peer had announced before, and that the Peer object does not name.
func TestAnnouncedEndpoint(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	next := freePort(t)
	publish(east, twoNodes[0])
	east.Put(wire.ExportPrefix("east")+"cluster", string(wire.Cluster{Name: "east", Endpoints: []string{"localhost:" + next}}.Encode())) // a name: addresses of loopback are not dialled
	vouch(east)
	o.start()
	o.connect(east, 2, nil)
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
	o.wantSynced("east")

	east.Stop()
	east.Addr = "127.0.0.1:" + next
	east.Start()
	east.Put(wire.ExportPrefix("east")+"node/n2", nodeValue("192.0.2.2 10.2.2.0/24"))
	o.wantMirror("east", "cluster", "heartbeat", "node/n1", "node/n2")
}

// freePort is a port on loopback where nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestCaller: a peer whose server is where nobody said it would be is found at the
// address that its own connection comes from.
func TestCaller(t *testing.T) {
	o := newOurs(t)
	east := newPeer(o, "east")
	host, port, err := net.SplitHostPort(east.Addr)
	if err != nil {
		t.Fatal(err)
	}
	o.callers = func(peer string) []netip.Addr {
		if peer != "east" {
			return nil
		}
		return []netip.Addr{netip.MustParseAddr(host)}
	}
	publish(east, [2]string{"n1", "192.0.2.1 10.2.1.0/24"})
	vouch(east)
	o.start()
	o.connect(east, 2, func(s *v1alpha1.PeerSpec) { s.Endpoints = []string{"127.0.0.99:" + port} }) // nobody is there
	o.wantMirror("east", "cluster", "heartbeat", "node/n1")
}

package clusterset_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/clusterset"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// cluster is a Kubernetes API server with the chart's definitions, and a member
// whose peer is a table.
type cluster struct {
	*testing.T
	client *kube.Client
	set    *kube.ClusterSet
	opt    clusterset.Options
	member *clusterset.Member
	east   atomic.Uint32 // an mcs.Freshness
	hidden atomic.Bool   // nobody knows yet who the peers are
}

func (c *cluster) peers() (map[string]clusterset.Peer, bool) {
	if c.hidden.Load() {
		return nil, false
	}
	return map[string]clusterset.Peer{"east": {Peer: mcs.Peer{Freshness: mcs.Freshness(c.east.Load())}}, "broken": {Refused: true}}, true
}

func newCluster(t *testing.T) *cluster {
	s := kubetest.Start(t)
	c := &cluster{T: t, client: s.Client()}
	chart, err := os.ReadFile("../../cmd/clustermesh/testdata/chart-default.golden.yaml")
	c.must(err)
	for doc := range strings.SplitSeq(string(chart), "\n---\n") {
		if strings.Contains(doc, "multicluster.x-k8s.io") && strings.Contains(doc, "kind: CustomResourceDefinition") {
			body, err := yaml.YAMLToJSON([]byte(doc))
			c.must(err)
			c.must(c.client.Discovery().RESTClient().Post().AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").SetHeader("Content-Type", "application/json").
				Body(body).Do(t.Context()).Error())
		}
	}
	c.set, err = c.client.NewClusterSet()
	c.must(err)
	c.eventually("ServiceImports are served", "<nil>", func() string {
		_, err := c.set.Imports().List(t.Context())
		return fmt.Sprint(err)
	})
	return c
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// start runs a member that leads, until it is stopped.
func (c *cluster) start() (stop func()) {
	c.opt = clusterset.Options{
		Base:     mcs.Base{Cluster: "west"},
		Services: state.New[model.ServiceKey, mcs.Service](), Derived: state.New[model.ServiceKey, mcs.DerivedAddrs](), Exports: state.New[model.ServiceKey, mcs.Export](),
		Namespaces: state.New[string, model.Namespace](), Slices: state.New[model.SliceKey, string](), Claims: state.New[model.ExportKey, string](),
		Peers: c.peers, Now: time.Now, Log: quiet, Board: status.NewBoard(time.Now),
	}
	balanced := state.New[lbpool.Key, lbpool.Service]()
	c.member = clusterset.New(c.opt)
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	for _, run := range []func() error{
		func() error {
			return c.client.RunServicesForMesh(ctx, quiet, c.opt.Services, c.opt.Derived, balanced)
		},
		func() error { return c.client.RunSlicesForMesh(ctx, quiet, "west", c.opt.Slices) },
		func() error { return c.client.RunNamespaces(ctx, quiet, c.opt.Namespaces) },
		func() error { return c.set.RunServiceExports(ctx, quiet, c.opt.Exports) },
		func() error { return c.member.Run(ctx) },
		func() error {
			return c.member.RunObjects(ctx, c.set, reconcile.Options{Resync: 500 * time.Millisecond})
		},
	} {
		g.Go(func() { _ = run() })
	}
	stop = sync.OnceFunc(func() { cancel(); g.Wait() })
	c.Cleanup(stop)
	return stop
}

// exported is what east says of a Service with these ports.
func exported(createdMilli uint64, ports ...uint16) string {
	x := wire.Export{CreatedMilli: createdMilli, Type: mcs.ClusterSetIP, SessionAffinity: "None", InternalPolicy: "Cluster", IPFamilies: []string{mcs.IPv4},
		Labels: map[string]string{"team": "east"}}
	for _, p := range ports {
		x.Ports = append(x.Ports, wire.Port{Name: fmt.Sprintf("p%d", p), Protocol: 6, Port: p})
	}
	return string(x.Encode())
}

// eventually waits until got returns want.
func (c *cluster) eventually(what, want string, got func() string) {
	c.Helper()
	last := ""
	for deadline := time.Now().Add(30 * time.Second); last != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.Fatalf("%s: %s", what, cmp.Diff(want, last))
		}
		last = got()
	}
}

// objects are the imports, derived Services and slices, in short.
func (c *cluster) objects() string {
	var out []string
	imports, err := c.set.Imports().List(c.Context())
	c.must(err)
	for k, i := range imports {
		x, err := i.Decode()
		c.must(err)
		out = append(out, fmt.Sprintf("import %v of %s with %d ports, address %t, slices %t, ready %s, team %s", k, i.Clusters, len(x.Ports), i.IPs != "", i.Slices, i.Ready.Status, x.Labels["team"]))
	}
	services, err := c.set.DerivedServices().List(c.Context())
	c.must(err)
	for _, s := range services {
		out = append(out, "service of "+s.Import)
	}
	backends, err := c.set.DerivedSlices().List(c.Context())
	c.must(err)
	for _, s := range backends {
		x, err := wire.DecodeSlice([]byte(s.Slice))
		c.must(err)
		out = append(out, fmt.Sprintf("slice of %s in %s with %d endpoints", s.Import, s.Source, len(x.Endpoints)))
	}
	return strings.Join(out, "\n")
}

// versions are those of all objects.
func (c *cluster) versions() string {
	var out []string
	for _, path := range []string{"/apis/multicluster.x-k8s.io/v1beta1/serviceimports", "/apis/multicluster.x-k8s.io/v1beta1/serviceexports", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"} {
		body, err := c.client.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(c.Context()).Raw()
		c.must(err)
		var list metav1.PartialObjectMetadataList
		c.must(json.Unmarshal(body, &list))
		for _, o := range list.Items {
			out = append(out, o.Namespace+"/"+o.Name+" "+o.ResourceVersion)
		}
	}
	return strings.Join(out, "\n")
}

func (c *cluster) conflict() string {
	rows, err := c.set.ExportStatuses().List(c.Context())
	c.must(err)
	s := rows[model.ServiceKey{Namespace: "default", Name: "web"}]
	return s.Valid.Status + s.Ready.Status + " " + s.Conflict.Status + "/" + s.Conflict.Reason
}

const webExport = `{"apiVersion":"multicluster.x-k8s.io/v1beta1","kind":"ServiceExport","metadata":{"name":"web"}}`

// TestMember: what a peer and our own cluster export becomes objects, which are
// kept as they should be, and outlive a restart.
func TestMember(t *testing.T) {
	c := newCluster(t)
	stop := c.start()
	claim := model.ExportKey{Cluster: "east", Namespace: "default", Name: "web"}
	backend := model.SliceKey{Cluster: "east", Namespace: "default", Name: "web-1"}
	slice := string(wire.Slice{Service: "web", Ports: []wire.Port{{Name: "p80", Protocol: 6, Port: 8080}}, Endpoints: []wire.SliceEndpoint{{Addr: addr("10.2.0.5"), Ready: true, Serving: true}}}.Encode())
	peer := clusterset.Source("east")
	c.opt.Claims.Replace(peer, map[model.ExportKey]string{claim: exported(1000, 80)})
	c.opt.Slices.Replace(peer, map[model.SliceKey]string{backend: slice})
	const fromEast = "import default/web of east with 1 ports, address true, slices true, ready True, team east\nservice of web\nslice of web in east with 1 endpoints"
	c.eventually("east exports", fromEast, c.objects)

	// What is as it should be is not written again (invariant R1).
	before := c.versions()
	time.Sleep(2 * time.Second) // of several passes
	if after := c.versions(); after != before {
		t.Errorf("objects are written though they are as wanted: %s", cmp.Diff(before, after))
	}

	// What others do to the objects is undone.
	raw := func(verb, path, body string) {
		t.Helper()
		r := c.client.Discovery().RESTClient().Verb(verb).AbsPath(path)
		if body != "" {
			r = r.SetHeader("Content-Type", "application/merge-patch+json").Body([]byte(body))
		}
		c.must(r.Do(t.Context()).Error())
	}
	const imports = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/default/serviceimports/web"
	raw("PATCH", imports, `{"spec":{"ports":[]},"metadata":{"labels":{"team":"mine"}}}`)
	c.eventually("edited", fromEast, c.objects)
	raw("DELETE", imports, "")
	c.eventually("deleted", fromEast, c.objects)

	// We export it too, later and with another port.
	_, err := c.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "p90", Port: 90}}}}, metav1.CreateOptions{})
	c.must(err)
	c.must(c.client.Discovery().RESTClient().Post().AbsPath("/apis/multicluster.x-k8s.io/v1beta1/namespaces/default/serviceexports").
		SetHeader("Content-Type", "application/json").Body([]byte(webExport)).Do(t.Context()).Error())
	c.eventually("both export", "import default/web of east west with 2 ports, address true, slices true, ready True, team east\nservice of web\nslice of web in east with 1 endpoints", c.objects)
	c.eventually("conflict", "TrueTrue True/PortConflict,LabelsConflict", c.conflict)
	port, ready := int32(90), true
	name := "p90"
	_, err = c.client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-2", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.5"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}}, metav1.CreateOptions{})
	c.must(err)
	c.eventually("rows for the peers", "export/default/web slice/default/web-2", func() string {
		return strings.Join(slices.Sorted(maps.Keys(c.member.Wire().Rows())), " ")
	})
	stop()

	// One that starts anew changes nothing before the peer has told what it has, and
	// takes nothing away even if it is silent.
	c.hidden.Store(true)
	stop = c.start()
	time.Sleep(2 * time.Second) // of several passes
	c.hidden.Store(false)
	time.Sleep(2 * time.Second)
	brief := func() string { return strings.SplitN(c.objects(), ",", 2)[0] }
	if got := brief(); got != "import default/web of east west with 2 ports" {
		t.Errorf("after a restart: %s", got)
	}
	c.east.Store(uint32(mcs.Stale))
	c.eventually("east is silent", "import default/web of west with 1 ports", brief)
	if got := c.objects(); !strings.Contains(got, "slice of web in east") {
		t.Errorf("backends of east are gone before it has reported: %s", got)
	}
	c.opt.Slices.Replace(peer, map[model.SliceKey]string{})
	c.opt.Claims.Replace(peer, map[model.ExportKey]string{})
	c.eventually("east exports no more", "import default/web of west with 1 ports, address true, slices true, ready True, team \nservice of web\nslice of web in west with 1 endpoints", c.objects)
	c.eventually("no conflict", "TrueTrue False/NoConflicts", c.conflict)
	raw("DELETE", "/apis/multicluster.x-k8s.io/v1beta1/namespaces/default/serviceexports/web", "")
	c.eventually("nobody exports", "", c.objects)
	stop()
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

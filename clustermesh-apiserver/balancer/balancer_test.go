package balancer_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/balancer"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/state"
)

var quiet = slog.New(slog.DiscardHandler)

// suite is a controller beside a real Kubernetes API server.
type suite struct {
	*testing.T
	c       *kube.Client
	metrics *prometheus.Registry // of the newest leader
}

// lead runs a controller, as a replica that was just elected does, until stop.
func (s *suite) lead() (stop func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pools, services := state.New[string, lbpool.Pool](), state.New[lbpool.Key, lbpool.Service]()
	nodes, peers := state.New[model.NodeKey, model.Node](), state.New[string, kube.Peer]()
	wg.Go(func() { _ = s.c.RunPools(ctx, quiet, pools) })
	wg.Go(func() { _ = s.c.RunBalanced(ctx, quiet, services) })
	wg.Go(func() { _ = s.c.RunNodes(ctx, quiet, kube.NodeOptions{Cluster: "us"}, nodes) })
	wg.Go(func() { _ = s.c.RunPeers(ctx, quiet, peers) })
	for _, t := range []interface{ Expect(...string) }{pools, services, nodes, peers} {
		t.Expect(kube.Source)
	}
	s.metrics = prometheus.NewRegistry()
	controller := balancer.New(balancer.Options{Client: s.c, Log: quiet, Recorder: s.c.NewRecorder(ctx, "test", "n1"), Metrics: balancer.NewMetrics(s.metrics),
		Pools: pools, Services: services, Nodes: nodes, Peers: peers, Fixed: []lbpool.Taken{{Prefix: netip.MustParsePrefix("10.1.0.0/16"), What: "pods of this cluster"}}})
	wg.Go(func() { _ = controller.Run(ctx, reconcile.Options{Log: quiet}) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	s.Cleanup(stop)
	return stop
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) pool(name string, cidrs ...string) *v1alpha1.LoadBalancerPool {
	s.Helper()
	p, err := s.c.Pools.Create(s.Context(), &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.LoadBalancerPoolSpec{CIDRs: cidrs}}, metav1.CreateOptions{})
	s.must(err)
	return p
}

func (s *suite) service(name string, edit func(*corev1.Service)) {
	s.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}}}
	if edit != nil {
		edit(svc)
	}
	_, err := s.c.CoreV1().Services("default").Create(s.Context(), svc, metav1.CreateOptions{})
	s.must(err)
}

func (s *suite) get(name string) *corev1.Service {
	s.Helper()
	svc, err := s.c.CoreV1().Services("default").Get(s.Context(), name, metav1.GetOptions{})
	s.must(err)
	return svc
}

func ingress(svc *corev1.Service) string {
	var out []string
	for _, i := range svc.Status.LoadBalancer.Ingress {
		out = append(out, i.IP+i.Hostname)
	}
	return strings.Join(out, " ")
}

func (s *suite) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("timeout: %s", what)
		}
	}
}

func (s *suite) shows(name, want string) {
	s.Helper()
	s.eventually(fmt.Sprintf("Service %s has %q, want %q", name, ingress(s.get(name)), want), func() bool { return ingress(s.get(name)) == want })
}

func (s *suite) reason(pool, want string) {
	s.Helper()
	s.eventually("pool "+pool+" is "+want, func() bool {
		p, err := s.c.Pools.Get(s.Context(), pool, metav1.GetOptions{})
		s.must(err)
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Reason == want
	})
}

// count reads the metric.
func (s *suite) count(labels ...string) float64 {
	s.Helper()
	families, err := s.metrics.Gather()
	s.must(err)
	for _, f := range families {
		for _, m := range f.Metric {
			found := true
			for _, l := range m.Label {
				found = found && slices.Contains(labels, l.GetValue())
			}
			if found {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// TestController: addresses come, stay over a change of the leader, and go, and
// what other controllers put into a status stays there (invariant V9).
func TestController(t *testing.T) {
	s := &suite{T: t, c: kubetest.Start(t).Client()}
	schema(s)
	stop := s.lead()
	s.pool("one", "192.0.2.0/30") // has two
	s.service("a", nil)
	s.shows("a", "192.0.2.1")
	svc := s.get("a")
	if i := svc.Status.LoadBalancer.Ingress[0]; i.IPMode == nil || *i.IPMode != corev1.LoadBalancerIPModeVIP || len(svc.Status.Conditions) != 1 {
		t.Errorf("status is %+v", svc.Status)
	}
	s.service("b", func(x *corev1.Service) { x.Annotations = map[string]string{kube.RequestAnnotation: "192.0.2.2"} })
	s.shows("b", "192.0.2.2")
	s.service("c", nil)
	s.reason("one", lbpool.ReasonFull)
	if got := s.count("one", "ipv4", "used"); got != 2 {
		t.Errorf("the metric says that %v addresses are used", got)
	}
	s.eventually("an Event says so", func() bool {
		list, err := s.c.CoreV1().Events("default").List(s.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=c"})
		s.must(err)
		return len(list.Items) == 1 && list.Items[0].Reason == "NoLoadBalancerAddress" && strings.Contains(list.Items[0].Message, "pool one")
	})
	stop()

	// While nobody leads, a Service goes, one is made anew, and another
	// controller serves one of its own.
	s.must(s.c.CoreV1().Services("default").Delete(s.Context(), "b", metav1.DeleteOptions{}))
	s.service("other", nil)
	patch := `{"status":{"loadBalancer":{"ingress":[{"hostname":"lb.example.com"}]}}}`
	_, err := s.c.CoreV1().Services("default").Patch(s.Context(), "other", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	s.must(err)
	s.lead()
	s.shows("c", "192.0.2.2")
	s.shows("a", "192.0.2.1")
	s.shows("other", "lb.example.com")
	s.reason("one", "Ready")

	// A spec that the schema lets through and nobody can use takes nothing away.
	p, err := s.c.Pools.Get(s.Context(), "one", metav1.GetOptions{})
	s.must(err)
	p.Spec.CIDRs = []string{"169.0.0.0/8"}
	_, err = s.c.Pools.Update(s.Context(), p, metav1.UpdateOptions{})
	s.must(err)
	s.reason("one", lbpool.ReasonInvalid)
	s.eventually("an Event says so", func() bool {
		list, err := s.c.CoreV1().Events("default").List(s.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=one,reason=" + lbpool.ReasonInvalid})
		s.must(err)
		return len(list.Items) == 1 && strings.Contains(list.Items[0].Message, "169.254.0.0/16")
	})
	s.shows("a", "192.0.2.1")
	p, err = s.c.Pools.Get(s.Context(), "one", metav1.GetOptions{}) // its status was written
	s.must(err)
	p.Spec.CIDRs = []string{"192.0.2.0/30"}
	_, err = s.c.Pools.Update(s.Context(), p, metav1.UpdateOptions{})
	s.must(err)
	s.reason("one", "Ready")
	s.shows("a", "192.0.2.1")

	// Somebody takes our address out of a status, and adds a name.
	patch = `{"status":{"loadBalancer":{"ingress":[{"hostname":"a.example.com"}]}}}`
	_, err = s.c.CoreV1().Services("default").Patch(s.Context(), "a", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	s.must(err)
	s.eventually("the mark and the status agree again", func() bool {
		row := kube.BalancedRow(s.get("a"))
		return !row.Torn && row.Others == "a.example.com"
	})

	// The Service is no longer one of a load balancer: mark and address go.
	svc = s.get("c")
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	_, err = s.c.CoreV1().Services("default").Update(s.Context(), svc, metav1.UpdateOptions{})
	s.must(err)
	s.eventually("nothing of ours is left", func() bool { x := s.get("c"); return ingress(x) == "" && len(x.Status.Conditions) == 0 })

	// Pools that must not be used, and one that goes.
	s.pool("pods", "10.1.7.0/24")
	s.reason("pods", lbpool.ReasonOverlaps)
	s.pool("two", "198.51.100.0/30")
	s.reason("two", "Ready")
	p, err = s.c.Pools.Get(s.Context(), "one", metav1.GetOptions{})
	s.must(err)
	p.Spec.ServiceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "body"}}
	_, err = s.c.Pools.Update(s.Context(), p, metav1.UpdateOptions{})
	s.must(err)
	s.service("d", nil)
	s.shows("d", "198.51.100.1")
	s.must(s.c.Pools.Delete(s.Context(), "two", metav1.DeleteOptions{}))
	s.shows("d", "")
}

// schema puts the chart's own schema in the place of the harness's, so that a
// real API server judges it, and tries what it must refuse.
func schema(s *suite) {
	s.Helper()
	chart, err := os.ReadFile("../../cmd/clustermesh/testdata/chart-default.golden.yaml")
	s.must(err)
	for _, doc := range strings.Split(string(chart), "\n---\n") {
		if !strings.Contains(doc, "name: loadbalancerpools.clustermesh.io") {
			continue
		}
		body, err := yaml.YAMLToJSON([]byte(doc))
		s.must(err)
		s.must(s.c.Discovery().RESTClient().Patch(types.MergePatchType).
			AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/loadbalancerpools.clustermesh.io").Body(body).Do(s.Context()).Error())
	}
	for _, spec := range []v1alpha1.LoadBalancerPoolSpec{
		{},
		{CIDRs: []string{"192.0.2.1/24"}},
		{Ranges: []v1alpha1.AddressRange{{Start: "192.0.2.1", Stop: "x"}}},
	} {
		s.eventually(fmt.Sprintf("%+v is refused", spec), func() bool {
			_, err := s.c.Pools.Create(s.Context(), &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{GenerateName: "bad-"}, Spec: spec},
				metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err != nil
		})
	}
}

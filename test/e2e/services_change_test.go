package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// What becomes of Services when their backends or Kubernetes itself come and go.

// watchNodes watches the nodes of west; the function that it returns ends that,
// and fails the test if one of them was not ready at some time: kubelet takes a
// node's pods out of all Services as soon as the plugin's STATUS fails.
func (s *serviceSuite) watchNodes(t *testing.T) (done func()) {
	t.Helper()
	stop, result := make(chan struct{}), make(chan error, 1)
	watch := func() error {
		for {
			out, err := s.west.Kubectl(t.Context(), "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
			if err == nil && strings.Count(out, "=True ") != len(s.west.Nodes) {
				err = fmt.Errorf("nodes are %s", out)
			}
			if err != nil {
				return err
			}
			select {
			case <-stop:
				return nil
			case <-time.After(300 * time.Millisecond):
			}
		}
	}
	go func() { result <- watch() }()
	return func() {
		t.Helper()
		close(stop)
		if err := <-result; err != nil {
			t.Errorf("during the upgrade: %v", err)
		}
	}
}

// pod runs a test server with a label app of its own. rest is added to its
// container.
func (s *serviceSuite) pod(t *testing.T, name, app, node string, rest ...string) {
	t.Helper()
	must(t, s.west.Apply(t.Context(), `apiVersion: v1
kind: Pod
metadata: {name: `+name+`, labels: {app: `+app+`}}
spec:
  nodeName: `+node+`
  terminationGracePeriodSeconds: 60
  containers:
    - name: probe
      image: `+lab.ToolImage+`
      command: [/bin/labtool, serve]
      env: [{name: POD_NAME, value: `+name+`}]
      ports: [{name: http, containerPort: 8080}, {name: flow, containerPort: 8082}]
      `+strings.Join(rest, "\n      ")+"\n"))
	s.goes(t, "pod", "--force", "--grace-period=0", name)
}

// goes deletes objects at the end of a test.
func (s *serviceSuite) goes(t *testing.T, args ...string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // the test's own has ended
		defer cancel()
		if _, err := s.west.Kubectl(ctx, append([]string{"delete", "--ignore-not-found"}, args...)...); err != nil {
			t.Error(err)
		}
	})
}

// terminating: a backend that is being stopped gets no new connections while
// there are others, gets them while there are none, and keeps those that it has
// (KEP-1669, KEP-1672).
func (s *serviceSuite) terminating(t *testing.T) {
	const lingers = `lifecycle: {preStop: {sleep: {seconds: 50}}}`
	s.pod(t, "leaving", "leaving", s.b.Node, lingers)
	must(t, s.west.Apply(t.Context(), `apiVersion: v1
kind: Service
metadata: {name: leaving}
spec: {selector: {app: leaving}, ports: [{name: http, port: 80, targetPort: http}, {name: flow, port: 82, targetPort: flow}]}
`))
	vip, err := s.west.Kubectl(t.Context(), "get", "service", "leaving", "-o", "jsonpath={.spec.clusterIP}")
	must(t, err)
	to := net.JoinHostPort(vip, "80")
	old := []fixture.Pod{{Name: "leaving"}}
	s.check(t, s.a, to, want{pods: old, sources: []netip.Addr{s.a.IPs.V4}})
	f := newFlows(t)
	for _, from := range []fixture.Pod{s.a, s.hostA} {
		f.start(t, s.m, from, net.JoinHostPort(vip, "82"), "leaving", "--udp=false")
	}
	f.started(t)

	_, err = s.west.Kubectl(t.Context(), "delete", "pod", "leaving", "--wait=false")
	must(t, err)
	conditions := func(want string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			out, err := s.west.Kubectl(t.Context(), "get", "endpointslices", "-l", "kubernetes.io/service-name=leaving", "-o",
				`jsonpath={range .items[*].endpoints[*]}{.conditions.ready}/{.conditions.serving}/{.conditions.terminating} {end}`)
			if err == nil && out != want {
				err = fmt.Errorf("endpoints are %q, want %q", out, want)
			}
			return err
		})
	}
	conditions("false/true/true ")
	time.Sleep(time.Second) // whatever follows from it has followed
	s.check(t, s.a, to, want{pods: old, sources: []netip.Addr{s.a.IPs.V4}})

	s.pod(t, "staying", "leaving", s.a.Node)
	s.check(t, s.b, to, want{pods: []fixture.Pod{{Name: "staying"}}, sources: []netip.Addr{s.b.IPs.V4}})
	f.check(t)
	if out, err := s.west.Kubectl(t.Context(), "get", "pod", "leaving", "-o", "jsonpath={.metadata.deletionTimestamp}"); err != nil || out == "" {
		t.Errorf("the old backend was gone before the end of the test (%v): nothing was tested", err)
	}
}

// notReady: a backend that is not ready counts only where the Service says so.
func (s *serviceSuite) notReady(t *testing.T) {
	s.pod(t, "unready", "unready", s.b.Node, "readinessProbe: {periodSeconds: 1, tcpSocket: {port: 9}}")
	must(t, s.west.Apply(t.Context(), `apiVersion: v1
kind: Service
metadata: {name: unready}
spec: {selector: {app: unready}, ports: [{port: 80, targetPort: http}]}
`))
	vip, err := s.west.Kubectl(t.Context(), "get", "service", "unready", "-o", "jsonpath={.spec.clusterIP}")
	must(t, err)
	_, err = s.west.Kubectl(t.Context(), "wait", "pod", "unready", "--for=jsonpath={.status.phase}=Running", "--timeout=30s")
	must(t, err)
	s.fails(t, s.a, net.JoinHostPort(vip, "80"), "refused")
	_, err = s.west.Kubectl(t.Context(), "patch", "service", "unready", "--type=merge", "-p", `{"spec":{"publishNotReadyAddresses":true}}`)
	must(t, err)
	s.check(t, s.a, net.JoinHostPort(vip, "80"), want{pods: []fixture.Pod{{Name: "unready"}}, sources: []netip.Addr{s.a.IPs.V4}})
}

// nearby: trafficDistribution keeps clients on their node or in their zone, as
// long as there is a backend.
func (s *serviceSuite) nearby(t *testing.T) {
	for i, n := range s.west.Nodes {
		_, err := s.west.Kubectl(t.Context(), "label", "node", n.Name, "--overwrite", fmt.Sprintf("topology.kubernetes.io/zone=z%d", i))
		must(t, err)
		defer s.west.Kubectl(t.Context(), "label", "node", n.Name, "topology.kubernetes.io/zone-") //nolint:errcheck // the next test does without
	}
	for _, near := range []string{"PreferSameNode", "PreferSameZone"} {
		svc := s.service(t, strings.ToLower(near), "selector: {app: probe}", "trafficDistribution: "+near)
		for i, vip := range svc.Spec.ClusterIPs {
			s.both(t, s.a, vip, 80, 81, want{[]fixture.Pod{s.a}, append(s.node(t, s.a), s.a.IPs.All()[i])})
			s.both(t, s.hostA, vip, 80, 81, want{[]fixture.Pod{s.a}, s.node(t, s.hostA)})
			s.both(t, s.hostB, vip, 80, 81, want{[]fixture.Pod{s.b}, s.node(t, s.hostB)})
		}
	}
	s.pod(t, "far", "far", s.b.Node)
	far := s.service(t, "far", "selector: {app: far}", "trafficDistribution: PreferSameNode")
	s.check(t, s.hostA, net.JoinHostPort(far.Spec.ClusterIPs[0].String(), "80"), want{[]fixture.Pod{{Name: "far"}}, s.node(t, s.hostA)})
}

// malformed: what is wrong with one Service harms no other.
func (s *serviceSuite) malformed(t *testing.T) {
	good := s.service(t, "good", "selector: {app: probe}", "externalIPs: [198.51.100.20]")
	// The younger of two that claim an address does not get it.
	s.service(t, "younger", "selector: {app: nobody}", "externalIPs: [198.51.100.20]")
	must(t, s.west.Apply(t.Context(), `apiVersion: v1
kind: Service
metadata: {name: twisted}
spec: {ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], ports: [{name: a, port: 80}, {name: b, port: 81, protocol: UDP, targetPort: nowhere}, {name: c, port: 83, protocol: SCTP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: twisted-family, labels: {kubernetes.io/service-name: twisted}}
addressType: IPv4
ports: [{name: a, port: 8080}, {name: unheard-of, port: 1}]
endpoints: [{addresses: [198.51.100.99]}, {addresses: ["`+good.Spec.ClusterIPs[0].String()+`"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: twisted-no-ports, labels: {kubernetes.io/service-name: twisted}}
addressType: IPv6
ports: []
endpoints: [{addresses: ["2001:db8::1"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: twisted-names, labels: {kubernetes.io/service-name: twisted}}
addressType: FQDN
ports: [{name: a, port: 8080}]
endpoints: [{addresses: [nowhere.example]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, labels: {kubernetes.io/service-name: there-is-none}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [198.51.100.98]}]
`))
	s.goes(t, "endpointslice", "twisted-family", "twisted-no-ports", "twisted-names", "orphan")
	s.goes(t, "service", "younger", "twisted")
	eventually(t, 15*time.Second, func() error {
		out, err := s.m.CLI(t.Context(), "status", "--context", "west", "-o", "json")
		if !strings.Contains(out, "198.51.100.20") || !strings.Contains(out, "default/younger") {
			return fmt.Errorf("status does not say that default/younger was refused 198.51.100.20 (%v)", err)
		}
		return nil
	})
	s.via(t, "198.51.100.20", s.hostA)
	all := []fixture.Pod{s.a, s.b}
	s.both(t, s.outside, netip.MustParseAddr("198.51.100.20"), 80, 81, want{all, append(s.node(t, s.hostA), s.outside.IPs.V4)})
	for _, vip := range good.Spec.ClusterIPs {
		s.both(t, s.hostA, vip, 80, 81, want{all, s.node(t, s.hostA)})
	}
	six, err := s.west.Kubectl(t.Context(), "get", "service", "twisted", "-o", "jsonpath={.spec.clusterIP}")
	must(t, err)
	s.fails(t, s.hostA, net.JoinHostPort(six, "80"), "refused")
}

// flapping: a backend changes a hundred times a second. The last state counts in
// the end, and nobody notices before.
func (s *serviceSuite) flapping(t *testing.T) {
	svc := s.service(t, "flapping", "type: ClusterIP")
	other := s.service(t, "steady", "selector: {app: probe}")
	client, err := s.west.Client()
	must(t, err)
	slices := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "flapping", Labels: map[string]string{discoveryv1.LabelServiceName: "flapping"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{s.a.IPs.V4.String()}}},
	}
	slice, err = slices.Create(t.Context(), slice, metav1.CreateOptions{})
	must(t, err)
	s.goes(t, "endpointslice", "flapping")
	at := func(vip netip.Addr) string { return net.JoinHostPort(vip.String(), "80") }
	s.check(t, s.hostA, at(svc.Spec.ClusterIPs[0]), want{[]fixture.Pod{s.a}, s.node(t, s.hostA)})

	clients := make(chan error, 2)
	for _, vip := range []netip.Addr{svc.Spec.ClusterIPs[0], other.Spec.ClusterIPs[0]} {
		go func() {
			got, err := s.m.Tally(t.Context(), s.hostA, at(vip), "--count", "400", "--interval", "10ms")
			if err == nil && len(got.Errors) > 0 {
				err = fmt.Errorf("%s: %+v", at(vip), got)
			}
			clients <- err
		}()
	}
	const flips = 501 // ends with the other one
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for i := range flips {
		<-tick.C
		slice.Endpoints[0].Addresses[0] = []fixture.Pod{s.b, s.a}[i%2].IPs.V4.String()
		slice, err = slices.Update(t.Context(), slice, metav1.UpdateOptions{})
		must(t, err)
	}
	t.Logf("%d changes in %v", flips, time.Since(began))
	s.check(t, s.hostA, at(svc.Spec.ClusterIPs[0]), want{[]fixture.Pod{s.b}, s.node(t, s.hostA)})
	for range cap(clients) {
		if err := <-clients; err != nil {
			t.Error(err)
		}
	}
}

// apiAway (invariant V4): nothing is withdrawn while the API server does not
// answer, also by an agent that starts meanwhile. It stays away for
// $E2E_API_AWAY, 30 seconds without that.
func (s *serviceSuite) apiAway(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}", "type: NodePort")
	vip := net.JoinHostPort(svc.Spec.ClusterIPs[0].String(), "80")
	s.check(t, s.hostA, vip, want{[]fixture.Pod{s.a, s.b}, s.node(t, s.hostA)})
	away, err := time.ParseDuration(cmp.Or(os.Getenv("E2E_API_AWAY"), "30s"))
	must(t, err)
	pids := s.west.Nodes[0].PIDs("kube-apiserver")
	if len(pids) != 1 {
		t.Fatalf("kube-apiserver runs as %v", pids)
	}
	must(t, unix.Kill(pids[0], unix.SIGSTOP))
	back := func() error { return unix.Kill(pids[0], unix.SIGCONT) }
	defer back() //nolint:errcheck // it may be back by then
	n := node(t, s.m, s.hostA.Node)
	reach := func(when string) {
		t.Helper()
		nodePort := net.JoinHostPort(s.hostB.IPs.V4.String(), strconv.Itoa(svc.Spec.Ports[0].NodePort))
		for _, to := range []string{vip, nodePort} {
			// Not by kubectl exec, which needs the API server.
			tool := fmt.Sprintf("/proc/%d/root%s", os.Getpid(), filepath.Join(s.m.Dir(), "bin", "labtool"))
			out, err := n.Exec(t.Context(), tool, "tally", "--count", "40", to)
			var got fixture.Tally
			if err == nil {
				err = json.Unmarshal([]byte(out), &got)
			}
			if err == nil && (len(got.Errors) > 0 || len(got.Pods) != 2) {
				err = fmt.Errorf("%+v", got)
			}
			if err != nil {
				t.Errorf("%s, %s: %v", to, when, err)
			}
		}
	}
	began := time.Now()
	reach("API server just gone")
	killAndWait(t, n, "clustermesh-agent", func() error { return nil })
	for i := 0; i == 0 || time.Since(began) < away; i++ {
		time.Sleep(5 * time.Second)
		reach(fmt.Sprintf("API server away for %v", time.Since(began).Round(time.Second)))
	}
	must(t, back())
	must(t, s.west.WaitReady(t.Context(), time.Minute))
	eventually(t, time.Minute, func() error {
		_, err := s.m.CLI(t.Context(), "status", "--context", "west")
		return err
	})
	late := s.service(t, "later", "selector: {app: probe}")
	s.check(t, s.hostA, net.JoinHostPort(late.Spec.ClusterIPs[0].String(), "80"), want{[]fixture.Pod{s.a, s.b}, s.node(t, s.hostA)})
}

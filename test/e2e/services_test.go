package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// TestServices: a cluster without kube-proxy. Clients are its pods, its nodes,
// and a node of another cluster, which is not connected, as the outside. All of
// it is the same with socket load-balancing and without (invariant V8).
func TestServices(t *testing.T) {
	m := up(t, fixture.Config{Config: lab.Config{Name: "e2esvc", Clusters: []lab.ClusterConfig{
		{Name: "west", Nodes: 2}, {Name: "east", Nodes: 1},
	}}})
	must(t, m.InstallAll(t.Context()))
	s := &serviceSuite{m: m}
	pods, err := m.Probes(t.Context())
	must(t, err)
	hosts, err := m.HostProbes(t.Context())
	must(t, err)
	s.a, s.b, s.hostA, s.hostB, s.outside = pods[0], pods[1], hosts[0], hosts[1], hosts[2]
	west, err := m.Cluster("west")
	must(t, err)
	s.west = west
	t.Run("socket load-balancing", func(t *testing.T) { s.everything(t, "all") })
	t.Run("nftables alone", func(t *testing.T) { s.everything(t, "off") })
	t.Run("kube-proxy kept", s.keep)
	t.Run("load balancer pools", s.pools) // last: it stops a node
}

// everything checks all that Services can do, with socket load-balancing or not.
func (s *serviceSuite) everything(t *testing.T, socketLB string) {
	s.fast = socketLB != "off"
	stays := s.watchNodes(t)
	_, err := s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "services.socketLB="+socketLB)
	must(t, err)
	stays()
	for _, n := range s.west.Nodes {
		if pins := sh(t, n, "ls /sys/fs/bpf"); strings.Contains(pins, "clustermesh-socketlb") != s.fast {
			t.Errorf("%s has these pins, with services.socketLB=%s: %q", n.Name, socketLB, pins)
		}
	}
	for _, tt := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"cluster IP", s.clusterIP},
		{"node port", s.nodePort},
		{"external addresses", s.external},
		{"load balancer, policy local", s.policyLocal},
		{"nobody there", s.nobody},
		{"affinity", s.affinity},
		{"host port", s.hostPort},
		{"agent killed under load", s.killAgent},
		{"rules flushed", s.flush},
		{"backend dies", s.backendDies},
		{"backend terminates", s.terminating},
		{"backend not ready", s.notReady},
		{"nearby backends", s.nearby},
		{"malformed", s.malformed},
		{"flapping", s.flapping},
		{"API server away", s.apiAway},
	} {
		t.Run(tt.name, tt.run)
	}
	_, err = s.west.Kubectl(t.Context(), "delete", "service", "-l", "component!=apiserver")
	must(t, err)
}

type serviceSuite struct {
	m            *fixture.Mesh
	west         *lab.Cluster
	a, b         fixture.Pod // one on each node of west
	hostA, hostB fixture.Pod // in the nodes' own network
	outside      fixture.Pod // on a node that is not of west
	fast         bool        // with socket load-balancing
}

// service makes a Service of west from the lines of its spec, and returns it
// once it has its addresses.
func (s *serviceSuite) service(t *testing.T, name string, spec ...string) (svc struct {
	Spec struct {
		ClusterIPs          []netip.Addr
		HealthCheckNodePort int
		Ports               []struct {
			Name     string
			NodePort int
		}
	}
}) {
	t.Helper()
	must(t, s.west.Apply(t.Context(), "apiVersion: v1\nkind: Service\nmetadata: {name: "+name+"}\nspec:\n  ipFamilyPolicy: RequireDualStack\n"+
		"  ports: [{name: http, port: 80, targetPort: http}, {name: echo, port: 81, protocol: UDP, targetPort: 8081}]\n  "+strings.Join(spec, "\n  ")+"\n"))
	out, err := s.west.Kubectl(t.Context(), "get", "service", name, "-o", "json")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &svc))
	return svc
}

// want is what a tally must show: these pods answered, each at least a fifth of
// its share of the time, and saw one of these sources.
type want struct {
	pods    []fixture.Pod
	sources []netip.Addr
}

const tries = 30

// check makes connections and compares, until it fits: a change takes a moment.
func (s *serviceSuite) check(t *testing.T, from fixture.Pod, to string, w want, args ...string) {
	t.Helper()
	err := fixture.Eventually(t.Context(), 15*time.Second, func() error {
		got, err := s.m.Tally(t.Context(), from, to, append([]string{"--count", strconv.Itoa(tries)}, args...)...)
		if err != nil {
			return err
		}
		if len(got.Errors) > 0 || len(got.Pods) != len(w.pods) {
			return fmt.Errorf("%+v", got)
		}
		for _, p := range w.pods {
			if got.Pods[p.Name] < tries/len(w.pods)/5 {
				return fmt.Errorf("%s answered %d of %d times", p, got.Pods[p.Name], tries)
			}
		}
		allowed := map[string]bool{}
		for _, a := range w.sources {
			allowed[a.String()] = true
		}
		for source := range got.Sources {
			if a, err := netip.ParseAddr(source); err == nil && !allowed[a.Unmap().String()] {
				return fmt.Errorf("a backend saw %v, want one of %v", source, w.sources)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("from %s to %s %v: %v", from, to, args, err)
	}
}

// both checks HTTP on one port and UDP on another of an address.
func (s *serviceSuite) both(t *testing.T, from fixture.Pod, addr netip.Addr, http, echo int, w want) {
	t.Helper()
	s.check(t, from, net.JoinHostPort(addr.String(), strconv.Itoa(http)), w)
	s.check(t, from, net.JoinHostPort(addr.String(), strconv.Itoa(echo)), w, "--udp")
}

// fails checks that every connection fails for one reason.
func (s *serviceSuite) fails(t *testing.T, from fixture.Pod, to, why string, args ...string) {
	t.Helper()
	err := fixture.Eventually(t.Context(), 15*time.Second, func() error {
		got, err := s.m.Tally(t.Context(), from, to, append([]string{"--count", "3", "--timeout", "500ms"}, args...)...)
		if err == nil && got.Errors[why] != 3 {
			err = fmt.Errorf("%+v, want %s", got, why)
		}
		return err
	})
	if err != nil {
		t.Errorf("from %s to %s %v: %v", from, to, args, err)
	}
}

// node is every address that the node of a pod may show: its own, and those of
// its end of the tunnel.
func (s *serviceSuite) node(t *testing.T, p fixture.Pod) []netip.Addr {
	t.Helper()
	n := node(t, s.m, p.Node)
	var out []netip.Addr
	for _, text := range strings.Fields(sh(t, n, "ip -o addr show | awk '{print $4}'")) {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			out = append(out, prefix.Addr())
		}
	}
	return out
}

func (s *serviceSuite) clusterIP(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}")
	all := []fixture.Pod{s.a, s.b}
	for i, vip := range svc.Spec.ClusterIPs {
		own := func(p fixture.Pod) netip.Addr { return p.IPs.All()[i] }
		// A pod that is sent to itself shows its node's address, else its own.
		s.both(t, s.a, vip, 80, 81, want{all, append(s.node(t, s.a), own(s.a))})
		s.both(t, s.hostA, vip, 80, 81, want{all, s.node(t, s.hostA)})
	}
	one := s.service(t, "one", "selector: {app: probe}", "internalTrafficPolicy: Local")
	for _, vip := range one.Spec.ClusterIPs {
		s.both(t, s.hostB, vip, 80, 81, want{[]fixture.Pod{s.b}, s.node(t, s.hostB)})
	}
}

func (s *serviceSuite) nodePort(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}", "type: NodePort")
	http, echo := svc.Spec.Ports[0].NodePort, svc.Spec.Ports[1].NodePort
	all := []fixture.Pod{s.a, s.b}
	for _, at := range []fixture.Pod{s.hostA, s.hostB} {
		for i, addr := range at.IPs.All() {
			s.both(t, s.outside, addr, http, echo, want{all, append(s.node(t, at), s.outside.IPs.All()[i])})
			s.both(t, s.a, addr, http, echo, want{all, append(append(s.node(t, s.a), s.node(t, at)...), s.a.IPs.All()[i])})
			s.both(t, s.hostA, addr, http, echo, want{all, append(s.node(t, s.hostA), s.node(t, at)...)})
		}
	}
}

// via routes an address to a node of west from the outside.
func (s *serviceSuite) via(t *testing.T, addr string, at fixture.Pod) {
	t.Helper()
	sh(t, node(t, s.m, s.outside.Node), "ip route replace "+addr+" via "+at.IPs.V4.String())
}

func (s *serviceSuite) external(t *testing.T) {
	s.service(t, "external", "selector: {app: probe}", "externalIPs: [198.51.100.8]")
	s.via(t, "198.51.100.8", s.hostA)
	all := []fixture.Pod{s.a, s.b}
	s.both(t, s.outside, netip.MustParseAddr("198.51.100.8"), 80, 81, want{all, append(s.node(t, s.hostA), s.outside.IPs.V4)})
	s.both(t, s.b, netip.MustParseAddr("198.51.100.8"), 80, 81, want{all, append(s.node(t, s.b), s.b.IPs.V4)})
	// One that belongs to a node is refused, and the node says so.
	s.service(t, "thief", "selector: {app: probe}", "externalIPs: ["+s.hostB.IPs.V4.String()+"]")
	eventually(t, 15*time.Second, func() error {
		out, err := s.m.CLI(t.Context(), "status", "--context", "west", "-o", "json")
		if !strings.Contains(out, "external address "+s.hostB.IPs.V4.String()+" is refused") {
			return fmt.Errorf("status says nothing of it (%v)", err)
		}
		return nil
	})
	s.fails(t, s.outside, net.JoinHostPort(s.hostB.IPs.V4.String(), "80"), "refused")
	_, err := s.west.Kubectl(t.Context(), "delete", "service", "thief")
	must(t, err)
}

func (s *serviceSuite) policyLocal(t *testing.T) {
	svc := s.service(t, "lb", "selector: {app: probe}", "type: LoadBalancer", "externalTrafficPolicy: Local", "loadBalancerSourceRanges: ["+s.outside.IPs.V4.String()+"/32]")
	_, err := s.west.Kubectl(t.Context(), "patch", "service", "lb", "--subresource=status", "--type=merge", "-p", `{"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.9"}]}}}`)
	must(t, err)
	vip := netip.MustParseAddr("198.51.100.9")
	for _, at := range []struct{ host, pod fixture.Pod }{{s.hostA, s.a}, {s.hostB, s.b}} {
		s.via(t, "198.51.100.9", at.host)
		s.both(t, s.outside, vip, 80, 81, want{[]fixture.Pod{at.pod}, []netip.Addr{s.outside.IPs.V4}}) // as itself
		answer := sh(t, node(t, s.m, at.host.Node), fmt.Sprintf("bash -c \"exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3\"", svc.Spec.HealthCheckNodePort))
		if !strings.Contains(answer, " 200 ") || !strings.Contains(answer, `"localEndpoints":1`) {
			t.Errorf("health of %s: %s", at.host.Node, answer)
		}
	}
	_, err = s.west.Kubectl(t.Context(), "patch", "service", "lb", "--type=merge", "-p", `{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24"]}}`)
	must(t, err)
	s.fails(t, s.outside, "198.51.100.9:80", "timeout")
}

func (s *serviceSuite) nobody(t *testing.T) {
	svc := s.service(t, "nobody", "selector: {app: nobody}", "type: NodePort")
	for _, vip := range svc.Spec.ClusterIPs {
		for _, from := range []fixture.Pod{s.a, s.hostA} {
			s.fails(t, from, net.JoinHostPort(vip.String(), "80"), "refused")
			why := "refused"
			if from == s.hostA {
				why = "not permitted" // what the kernel says to a socket whose own packet is rejected
			}
			s.fails(t, from, net.JoinHostPort(vip.String(), "81"), why, "--udp")
			s.fails(t, from, net.JoinHostPort(vip.String(), "9999"), "refused") // no such port
		}
	}
	s.fails(t, s.outside, net.JoinHostPort(s.hostA.IPs.V4.String(), strconv.Itoa(svc.Spec.Ports[0].NodePort)), "refused")
}

func (s *serviceSuite) affinity(t *testing.T) {
	svc := s.service(t, "sticky", "selector: {app: probe}", "sessionAffinity: ClientIP", "sessionAffinityConfig: {clientIP: {timeoutSeconds: 3}}")
	for _, vip := range svc.Spec.ClusterIPs {
		to := net.JoinHostPort(vip.String(), "80")
		first := map[string]bool{}
		for range 12 { // times out in between, and then goes to another one sooner or later
			got, err := s.m.Tally(t.Context(), s.hostA, to, "--count", "10")
			must(t, err)
			if len(got.Errors) > 0 || len(got.Pods) != 1 {
				t.Fatalf("%s: %+v; want ten answers of one pod", to, got)
			}
			for pod := range got.Pods {
				first[pod] = true
			}
			if len(first) == 2 {
				break
			}
			time.Sleep(3500 * time.Millisecond)
		}
		if len(first) != 2 {
			t.Errorf("%s: always %v, also after the timeout", to, first)
		}
	}
}

// hostPort: a port of the node leads to the pod that asked for it, and outlives a
// restart of the agent.
func (s *serviceSuite) hostPort(t *testing.T) {
	must(t, s.west.Apply(t.Context(), `apiVersion: v1
kind: Pod
metadata: {name: onport}
spec:
  nodeName: `+s.a.Node+`
  terminationGracePeriodSeconds: 0
  containers:
    - name: probe
      image: `+lab.ToolImage+`
      command: [/bin/labtool, serve]
      env: [{name: POD_NAME, value: onport}]
      ports: [{containerPort: 8080, hostPort: 18080}, {containerPort: 8081, hostPort: 18081, protocol: UDP}]
`))
	pod := []fixture.Pod{{Name: "onport"}}
	reach := func() {
		t.Helper()
		for i, addr := range s.hostA.IPs.All() {
			s.both(t, s.outside, addr, 18080, 18081, want{pod, []netip.Addr{s.outside.IPs.All()[i]}}) // as itself
			s.both(t, s.a, addr, 18080, 18081, want{pod, []netip.Addr{s.a.IPs.All()[i]}})
			s.both(t, s.hostA, addr, 18080, 18081, want{pod, s.node(t, s.hostA)})
		}
	}
	reach()
	must(t, node(t, s.m, s.a.Node).Kill(t.Context(), "clustermesh-agent"))
	reach()
	_, err := s.west.Kubectl(t.Context(), "delete", "pod", "onport", "--wait")
	must(t, err)
	s.fails(t, s.outside, net.JoinHostPort(s.hostA.IPs.V4.String(), "18080"), "refused")
}

// killAgent (invariants V4, V5): connections go on being made while the agent is away, and what
// changed meanwhile counts soon after its return.
func (s *serviceSuite) killAgent(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}")
	to := net.JoinHostPort(svc.Spec.ClusterIPs[0].String(), "80")
	flows := startFlows(t, s.m, [][2]fixture.Pod{{s.a, s.b}})
	result := make(chan error, 1)
	go func() {
		got, err := s.m.Tally(t.Context(), s.a, to, "--count", "400", "--interval", "20ms")
		if err == nil && (len(got.Errors) > 0 || len(got.Pods) != 2) {
			err = fmt.Errorf("%+v", got)
		}
		result <- err
	}()
	n := node(t, s.m, s.a.Node)
	must(t, n.Kill(t.Context(), "clustermesh-agent"))
	late := s.service(t, "late", "selector: {app: probe}")
	eventually(t, time.Minute, func() error {
		got, err := s.m.Tally(t.Context(), s.a, net.JoinHostPort(late.Spec.ClusterIPs[0].String(), "80"), "--count", "4")
		if err == nil && len(got.Errors) > 0 {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
	if err := <-result; err != nil {
		t.Errorf("connections while the agent was away: %v", err)
	}
	flows.check(t)
}

func (s *serviceSuite) flush(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}")
	sh(t, node(t, s.m, s.a.Node), "nft flush ruleset")
	for _, vip := range svc.Spec.ClusterIPs {
		s.both(t, s.hostA, vip, 80, 81, want{[]fixture.Pod{s.a, s.b}, s.node(t, s.hostA)})
	}
}

// backendDies: a UDP client that never stops sending, from one port, is moved to
// the backend that is left; if its socket itself leads to the backend that is
// gone, that is ended, so that the client makes another one.
func (s *serviceSuite) backendDies(t *testing.T) {
	svc := s.service(t, "web", "selector: {app: probe}")
	to := net.JoinHostPort(svc.Spec.ClusterIPs[0].String(), "81")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type outcome struct {
		r   flowResult
		err error
	}
	results := make(chan outcome, 6)
	for range cap(results) { // so many that one of them has the backend that dies
		go func() {
			out, err := s.m.Exec(ctx, s.hostA, "/bin/labtool", "flow", "--udp", "--to", to, "--interval", "50ms", "--duration", "12s")
			var r flowResult
			if err == nil {
				err = json.Unmarshal([]byte(out), &r)
			}
			results <- outcome{r, err}
		}()
	}
	time.Sleep(2 * time.Second)
	_, err := s.west.Kubectl(t.Context(), "label", "pod", s.b.Name, "app-", "--overwrite") // no backend any more, though it answers
	must(t, err)
	n := node(t, s.m, s.a.Node)
	eventually(t, 10*time.Second, func() error {
		flows := sh(t, n, "conntrack -L -p udp --orig-dst "+svc.Spec.ClusterIPs[0].String()+" 2>/dev/null | grep -c 'src="+s.b.IPs.V4.String()+"' || true")
		if flows != "0" {
			return fmt.Errorf("%s flows lead to the backend that is gone", flows)
		}
		return nil
	})
	ended := 0
	for range cap(results) {
		o := <-results
		switch {
		case s.fast && strings.Contains(o.r.Broken, "connection abort"):
			ended++
		case o.err != nil || o.r.Lost > 40 || o.r.Sent < 100:
			t.Errorf("%+v, %v; want at most two seconds lost of twelve", o.r, o.err)
		}
	}
	if s.fast && ended == 0 {
		t.Error("no socket was ended")
	}
	pods, err := s.m.WaitPods(t.Context(), s.west, "probe", 2, time.Minute) // the DaemonSet made another one
	must(t, err)
	s.a, s.b = pods[0], pods[1]
}

// keep: kube-proxy is asked for, and nothing of ours is left in its way; then ours
// again.
func (s *serviceSuite) keep(t *testing.T) {
	n := node(t, s.m, s.a.Node)
	_, err := s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "services.kubeProxy=keep")
	must(t, err)
	eventually(t, 15*time.Second, func() error {
		if left := sh(t, n, "nft list tables | grep services || true; ls -d /sys/fs/bpf/clustermesh* 2>/dev/null; ip route show table 7473 | grep "+serviceRange(s.west)+" || true"); left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})
	_, err = s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "services.kubeProxy=replace")
	must(t, err)
	svc := s.service(t, "web", "selector: {app: probe}")
	s.both(t, s.hostA, svc.Spec.ClusterIPs[0], 80, 81, want{[]fixture.Pod{s.a, s.b}, s.node(t, s.hostA)})
}

// pools (invariant V9): Services get addresses out of a pool in the nodes' subnet,
// a neighbour that is no node of theirs finds each at one node, and at another
// one after that has died.
func (s *serviceSuite) pools(t *testing.T) {
	must(t, s.west.Apply(t.Context(), "apiVersion: clustermesh.io/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: lan}\nspec: {cidrs: [172.18.200.0/28, \"fd00:172:18::200:0/124\"]}\n"))
	moving := netip.Addr{} // what the second node answers for: the first one has the control plane
	var all []netip.Addr
	for i := range 6 {
		name := fmt.Sprintf("pooled%d", i)
		s.service(t, name, "selector: {app: probe}", "type: LoadBalancer")
		for _, a := range s.ingress(t, name, 2) {
			all = append(all, a)
			owner := s.owner(t, a, 30*time.Second)
			at := s.hostA
			if owner == s.hostB.Node {
				at = s.hostB
				if a.Is4() {
					moving = a
				}
			}
			s.both(t, s.outside, a, 80, 81, want{[]fixture.Pod{s.a, s.b}, append(s.node(t, at), s.outside.IPs.All()...)})
			s.fails(t, s.outside, net.JoinHostPort(a.String(), "82"), "refused")
		}
	}
	if !moving.IsValid() {
		t.Fatalf("the second node answers for none of %v", all)
	}
	// The kernel answers while there is no agent.
	must(t, node(t, s.m, s.hostB.Node).Kill(t.Context(), "clustermesh-agent"))
	sh(t, node(t, s.m, s.outside.Node), "ip neigh flush to "+moving.String())
	s.both(t, s.outside, moving, 80, 81, want{[]fixture.Pod{s.a, s.b}, append(s.node(t, s.hostB), s.outside.IPs.All()...)})

	second := node(t, s.m, s.hostB.Node)
	must(t, second.Stop(t.Context()))
	eventually(t, 2*time.Minute, func() error { // Kubernetes takes 50 seconds to find out
		got, err := s.m.Tally(t.Context(), s.outside, net.JoinHostPort(moving.String(), "80"), "--count", "10", "--timeout", "500ms")
		if err == nil && (len(got.Errors) > 0 || got.Pods[s.a.Name] != 10) {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
	must(t, second.Start(t.Context()))
	must(t, s.west.WaitReady(t.Context(), 3*time.Minute))
	for _, a := range all {
		s.owner(t, a, time.Minute)
	}
	_, err := s.west.Kubectl(t.Context(), "delete", "loadbalancerpool", "lan")
	must(t, err)
	s.ingress(t, "pooled0", 0)
	eventually(t, time.Minute, func() error {
		for _, n := range s.west.Nodes {
			if left := sh(t, n, "ip neigh show proxy; ip -6 neigh show proxy"); left != "" {
				return fmt.Errorf("%s: %s", n.Name, left)
			}
		}
		return nil
	})
}

// ingress waits until a Service has n addresses of a load balancer.
func (s *serviceSuite) ingress(t *testing.T, name string, n int) (addrs []netip.Addr) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		out, err := s.west.Kubectl(t.Context(), "get", "service", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
		if err != nil {
			return err
		}
		addrs = nil
		for _, text := range strings.Fields(out) {
			addrs = append(addrs, netip.MustParseAddr(text))
		}
		if len(addrs) != n {
			return fmt.Errorf("service %s has %v, want %d addresses", name, addrs, n)
		}
		return nil
	})
	return addrs
}

// owner is the one node of west that answers for an address.
func (s *serviceSuite) owner(t *testing.T, a netip.Addr, within time.Duration) (name string) {
	t.Helper()
	eventually(t, within, func() error {
		var owners []string
		for _, n := range s.west.Nodes {
			if strings.Contains(sh(t, n, "ip neigh show proxy; ip -6 neigh show proxy"), a.String()+" ") {
				owners = append(owners, n.Name)
			}
		}
		if len(owners) != 1 {
			return fmt.Errorf("%v is answered for by %v", a, owners)
		}
		name = owners[0]
		return nil
	})
	return name
}

// serviceRange is the IPv4 range of a cluster's Services.
func serviceRange(c *lab.Cluster) string {
	for _, p := range c.Config().ServiceCIDRs {
		if p.Addr().Is4() {
			return p.String()
		}
	}
	return ""
}

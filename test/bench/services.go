package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// proxy is one way to serve Services. All are measured on the same cluster, with
// the same pods and pod network, one after the other.
type proxy struct {
	name string
	ours string // services.socketLB, if they are ours
	mode string // of kube-proxy, if not
}

const (
	proxyOurs   = "clustermesh"         // with socket load-balancing
	proxyTruth  = "clustermesh-nft"     // without
	proxyKube   = "kube-proxy-nftables" // which ours is compared with
	proxyLegacy = "kube-proxy-iptables"
)

func proxies() []proxy {
	out := []proxy{{name: proxyKube, mode: "nftables"}, {name: proxyTruth, ours: "off"}, {name: proxyOurs, ours: "all"}}
	if _, err := exec.LookPath("iptables"); err != nil {
		progress("kube-proxy in iptables mode is not measured: no iptables here")
		return out
	}
	return append([]proxy{{name: proxyLegacy, mode: "iptables"}}, out...)
}

// serviceBench is the measurement of Services.
type serviceBench struct {
	*bench
	mesh    *fixture.Mesh
	west    *lab.Cluster
	pods    *perfPods
	outside *client                        // on a node that is not of west
	running string                         // mode of kube-proxy
	port    int                            // of the server for connections by the Service
	at      struct{ vip, nodePort string } // where the measured Service is
	shares  map[string]float64             // medians, by PROXY/SIZE/VERB
	results []Result
}

// services compares Services with pods, and with kube-proxy.
func (b *bench) services(ctx context.Context) ([]Result, error) {
	const name = "benchsvc"
	progress("%s: a cluster boots, and a node outside of it", name)
	defer b.down(ctx, name)
	conf := benchLab(name)
	// Room for more than 4,000.
	conf.Clusters[0].ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.128.0.0/16"), netip.MustParsePrefix("fd00:10:128::/112")}
	m, err := fixture.Up(ctx, fixture.Config{Config: conf})
	if err != nil {
		return nil, err
	}
	if err := m.InstallAll(ctx); err != nil {
		return nil, err
	}
	s := &serviceBench{bench: b, mesh: m, west: m.Clusters[0], shares: map[string]float64{}, port: 8100}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	defer s.stop(ctx)
	for _, size := range sizes(b.count) {
		if err := s.size(ctx, size); err != nil {
			return s.results, fmt.Errorf("%d services: %w", size, err)
		}
	}
	return s.results, nil
}

// start makes the pods and the Service that is measured.
func (s *serviceBench) start(ctx context.Context) (err error) {
	if s.pods, err = s.startPods(ctx, s.mesh.Lab); err != nil {
		return err
	}
	out := perfPod{s.mesh.Clusters[1].Nodes[0], "perf-out", true, "sleep"}
	s.pods.pods = append(s.pods.pods, out)
	if err := s.pods.create(ctx, out); err != nil {
		return err
	}
	if s.outside, err = s.pods.attach(ctx, out); err != nil {
		return err
	}
	err = s.west.Apply(ctx, `apiVersion: v1
kind: Service
metadata: {name: perf}
spec: {type: NodePort, ports: [{name: rr, port: 8083}, {name: crr, port: 8084}]}
`)
	if err != nil {
		return err
	}
	where, err := s.west.Kubectl(ctx, "get", "service", "perf", "-o", "jsonpath={.spec.clusterIP} {.spec.ports[1].nodePort}")
	if err != nil {
		return err
	}
	vip, port, _ := strings.Cut(where, " ")
	s.at.vip, s.at.nodePort = vip, s.west.Nodes[1].Addrs.V4.String()+":"+port
	return nil
}

// nextPort leads the Service to a port of the server that no other proxy has
// used: see labtool's firstCRRPort.
func (s *serviceBench) nextPort(ctx context.Context) error {
	port := s.port
	s.port++
	return s.west.Apply(ctx, fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: perf, labels: {kubernetes.io/service-name: perf}}
addressType: IPv4
ports: [{name: rr, port: 8083}, {name: crr, port: %d}]
endpoints: [{addresses: ["%s"], nodeName: %s, conditions: {ready: true}}]
`, port, s.pods.servers[pathNodes], s.west.Nodes[1].Name))
}

func (s *serviceBench) stop(ctx context.Context) {
	if s.outside != nil {
		s.outside.close()
	}
	s.pods.stop(ctx)
}

// size measures all proxies with so many other Services, of ten endpoints each.
func (s *serviceBench) size(ctx context.Context, size int) error {
	progress("%d services with 10 endpoints each", size-1)
	if _, err := s.onNode(ctx, servicesArg{Do: "objects", Services: size - 1}); err != nil {
		return err
	}
	for _, p := range proxies() {
		if err := s.use(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		rounds, err := s.interleaved(p.name, size)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		s.judge(p, size, rounds)
		if size != s.count {
			continue
		}
		if err := s.atSize(ctx, p, size); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// use makes a proxy, and no other, serve.
func (s *serviceBench) use(ctx context.Context, p proxy) error {
	progress("services are %s's", p.name)
	if err := s.nextPort(ctx); err != nil {
		return err
	}
	if s.running != "" {
		for _, n := range s.west.Nodes {
			if err := n.StopKubeProxy(ctx); err != nil {
				return err
			}
		}
		s.running = ""
	}
	set := "services.kubeProxy=keep"
	if p.ours != "" {
		set = "services.kubeProxy=replace,services.socketLB=" + p.ours
	}
	if _, err := s.mesh.CLI(ctx, "upgrade", "--context", s.west.Name, "--set", set); err != nil {
		return err
	}
	if p.mode != "" {
		for _, n := range s.west.Nodes {
			if err := n.StartKubeProxy(p.mode); err != nil {
				return err
			}
		}
		s.running = p.mode
	}
	return fixture.Eventually(ctx, 5*time.Minute, func() error {
		for c, to := range map[*client]string{s.pods.clients[pathNodes]: s.at.vip, s.outside: s.at.nodePort} {
			if _, err := c.measure("crr", to, 50*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
}

// The paths of Services beside those of pods.
const (
	pathVIP      = "vip"       // pod to pod by the cluster IP
	pathOut      = "out"       // node outside to node
	pathNodePort = "node-port" // node outside to pod by the node's port
)

func (s *serviceBench) interleaved(name string, size int) (*series, error) {
	pod, out := s.pods.clients[pathNodes], s.outside
	steps := []struct {
		path, verb, to string
		from           *client
	}{
		{pathNodes, "rr", s.pods.servers[pathNodes], pod}, {pathVIP, "rr", s.at.vip, pod},
		{pathNodes, "crr", s.pods.servers[pathNodes], pod}, {pathVIP, "crr", s.at.vip, pod},
		{pathOut, "crr", s.pods.servers[pathHost], out}, {pathNodePort, "crr", s.at.nodePort, out},
	}
	v := &series{}
	for i := range s.rounds + 1 {
		for j := range steps {
			step := steps[j]
			if i%2 == 1 { // the other way round
				step = steps[len(steps)-1-j]
			}
			n, err := step.from.measure(step.verb, step.to, s.each)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", step.path, step.verb, err)
			}
			if i > 0 { // warm by then
				v.add(step.path, step.verb, n)
			}
		}
	}
	progress("%s, %d services: by cluster IP %.2f of request-response, %.2f of connections by pod IP", name, size,
		figure("", "", v.ratio(pathVIP, pathNodes, "rr")...).Value, figure("", "", v.ratio(pathVIP, pathNodes, "crr")...).Value)
	return v, nil
}

// judge makes results of rounds. What ours has to reach is what is asked for, and
// no less than kube-proxy, which has been measured before it.
func (s *serviceBench) judge(p proxy, size int, v *series) {
	for _, f := range []struct {
		name, path, by, verb string
		least                float64
	}{
		{"cluster-ip/rr", pathVIP, pathNodes, "rr", 0.98},
		{"cluster-ip/crr", pathVIP, pathNodes, "crr", 0.95},
		{"node-port/crr", pathNodePort, pathOut, "crr", 0},
	} {
		key := fmt.Sprintf("%d/%s", size, f.name)
		r := figure("services/"+p.name+"/"+key, "share", v.ratio(f.path, f.by, f.verb)...)
		if ref, has := s.shares[key]; has {
			r = r.reference(ref)
			if p.name == proxyOurs {
				r = r.atLeast(round(max(f.least, ref)))
			}
		}
		if p.name == proxyKube {
			s.shares[key] = r.Value
		}
		s.results = append(s.results, r)
	}
}

// atSize measures how long it takes to load everything, and until a change
// counts, on the node of the clients.
func (s *serviceBench) atSize(ctx context.Context, p proxy, size int) error {
	rs, err := s.onNode(ctx, servicesArg{Do: "change", Proxy: p.name})
	if err != nil {
		return err
	}
	program := "clustermesh-agent"
	if p.mode != "" {
		program = "kube-proxy"
	}
	cold, err := s.onNode(ctx, servicesArg{Do: "cold", Proxy: p.name, Program: program, Mode: p.mode, Services: size})
	s.results = append(append(s.results, rs...), cold...)
	return err
}

func (s *serviceBench) onNode(ctx context.Context, arg servicesArg) ([]Result, error) {
	n := s.west.Nodes[0]
	arg.Node = n.Addrs.V4
	if arg.Do != "cold" {
		return measureOnNode(ctx, n, "services", arg)
	}
	// What is in the kernel goes while nobody can put it back.
	if arg.Mode != "" {
		if err := n.StopKubeProxy(ctx); err != nil {
			return nil, err
		}
		if err := n.StartKubeProxy(arg.Mode); err != nil {
			return nil, err
		}
	} else {
		if err := n.Kill(ctx, arg.Program); err != nil {
			return nil, err
		}
		if _, err := n.Exec(ctx, "sh", "-c", "nft delete table inet clustermesh-services; rm -rf /sys/fs/bpf/clustermesh-socketlb"); err != nil {
			return nil, err
		}
	}
	err := fixture.Eventually(ctx, time.Minute, func() error {
		if pids := n.PIDs(arg.Program); len(pids) == 1 {
			arg.PID = pids[0]
			return nil
		}
		return fmt.Errorf("%s has not come back", arg.Program)
	})
	if err != nil {
		return nil, err
	}
	return measureOnNode(ctx, n, "services", arg)
}

// sizes are the numbers of Services to measure with, up to most.
func sizes(most int) []int {
	var out []int
	for _, n := range []int{1, 1000} {
		if n < most {
			out = append(out, n)
		}
	}
	return append(out, most)
}

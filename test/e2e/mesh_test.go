package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// TestMesh walks three dual-stack clusters on one fabric through their life:
// install, connect, faults, growth, disconnect, uninstall.
func TestMesh(t *testing.T) {
	m := up(t, fixture.Config{Config: lab.Config{Name: "e2e", Clusters: []lab.ClusterConfig{
		{Name: "west", Nodes: 2}, {Name: "east", Nodes: 2}, {Name: "south", Nodes: 1},
	}}})
	before := snapshots(t, m)
	s := &suite{m: m, dir: t.TempDir()}
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"install", s.install},
		{"pods inside one cluster", s.inside},
		{"connect refuses", s.refuse},
		{"connect", s.connect},
		{"pods of three clusters", s.across},
		{"hostile peer", s.hostile},
		{"agent killed under traffic", s.killAgent},
		{"API server killed under traffic", s.killServer},
		{"upgrade under traffic", s.upgrade},
		{"clusters cut apart", s.cut},
		{"etcd wiped", s.wipe},
		{"node added and removed", s.grow},
		{"node stopped and started", s.reboot},
		{"node re-addressed", s.readdress},
		{"disconnect and reconnect", s.disconnect},
		{"uninstall", func(t *testing.T) { s.uninstall(t, before) }},
	} {
		if !t.Run(step.name, step.run) {
			t.Fatalf("%q failed; what follows stands on it", step.name)
		}
	}
}

type suite struct {
	m    *fixture.Mesh
	dir  string // lives as long as the lab
	pods []fixture.Pod
}

func (s *suite) of(cluster string) (out []fixture.Pod) {
	for _, p := range s.pods {
		if p.Cluster == cluster {
			out = append(out, p)
		}
	}
	return out
}

func (s *suite) install(t *testing.T) {
	must(t, s.m.InstallAll(t.Context()))
	for _, c := range s.m.Clusters {
		must(t, c.WaitReady(t.Context(), time.Minute))
	}
	pods, err := s.m.Probes(t.Context())
	must(t, err)
	s.pods = pods
}

func (s *suite) inside(t *testing.T) {
	reachAll(t, s.m, s.of("west"))
	for _, p := range s.of("west") { // a node reaches pods of other nodes, too
		for _, ip := range p.IPs.All() {
			for _, n := range []string{"west-n1", "west-n2"} {
				sh(t, node(t, s.m, n), fmt.Sprintf("bash -c '</dev/tcp/%s/%d'", ip, fixture.ProbePort))
			}
		}
	}
}

// refuse: a join that can't work is refused before anything changes.
func (s *suite) refuse(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		args       []string
	}{
		{"with itself", "west", []string{"connect", "--context", "west", "--destination-context", "west"}},
		{"no such context", "nowhere", []string{"connect", "--context", "west", "--destination-context", "nowhere"}},
	} {
		out, err := s.m.CLI(t.Context(), tt.args...)
		if err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%s: error %v, output %q; want an error that names %q", tt.name, err, out, tt.want)
		}
	}
	if got := s.peers(t, "west"); got != "" {
		t.Errorf("west has peers %q after refused connects", got)
	}
}

func (s *suite) peers(t *testing.T, cluster string) string {
	t.Helper()
	return sh(t, node(t, s.m, cluster+"-n1"), "kubectl get peers -o name")
}

func (s *suite) connect(t *testing.T) {
	must(t, s.m.Connect(t.Context(), "west", "east"))
	must(t, s.m.Connect(t.Context(), "west", "south"))
	must(t, s.m.Connect(t.Context(), "east", "south"))
}

func (s *suite) across(t *testing.T) {
	s.waitMesh(t)
	reachAll(t, s.m, s.pods)
}

// waitRoutes waits until every node of west has n routes to other nodes, both families counted.
func (s *suite) waitRoutes(t *testing.T, n int) {
	t.Helper()
	s.waitRoutesOn(t, n, "west-n1", "west-n2")
}

// waitMesh waits until every node has routes to all others.
func (s *suite) waitMesh(t *testing.T) {
	t.Helper()
	s.waitRoutesOn(t, 8, "west-n1", "west-n2", "east-n1", "east-n2", "south-n1")
}

func (s *suite) waitRoutesOn(t *testing.T, n int, nodes ...string) {
	t.Helper()
	for _, name := range nodes {
		eventually(t, 15*time.Second, func() error {
			if got := routes(t, node(t, s.m, name)); len(strings.Fields(got)) == 0 || strings.Count(got, "\n")+1 != n {
				return fmt.Errorf("%s has these routes, want %d:\n%s", name, n, got)
			}
			return nil
		})
	}
}

// disturb runs mischief while flows between pods of all clusters are up, and
// checks that none lost a packet and no route to a node was touched (invariant N5).
func (s *suite) disturb(t *testing.T, mischief func(t *testing.T)) {
	t.Helper()
	flows := startFlows(t, s.m, [][2]fixture.Pod{
		{s.of("west")[0], s.of("east")[1]}, {s.of("east")[0], s.of("west")[1]},
		{s.of("west")[0], s.of("west")[1]}, {s.of("south")[0], s.of("west")[0]},
	})
	watch := watchRoutes(t, s.nodes(t)...)
	mischief(t)
	flows.check(t)
	watch.check(t)
}

// nodes are all of the three clusters.
func (s *suite) nodes(t *testing.T) (out []*lab.Node) {
	t.Helper()
	for _, c := range s.m.Clusters {
		out = append(out, c.Nodes...)
	}
	return out
}

func (s *suite) killAgent(t *testing.T) {
	s.disturb(t, func(t *testing.T) {
		n := node(t, s.m, "west-n1")
		for range 2 {
			killAndWait(t, n, "clustermesh-agent", agentReady(t, n))
		}
	})
	reachAll(t, s.m, s.pods)
}

// agentReady asks the agent of a node.
func agentReady(t *testing.T, n *lab.Node) func() error {
	return func() error {
		_, err := n.Exec(t.Context(), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9473; printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3; grep -q ' 200 ' <&3")
		return err
	}
}

// server is the node where a cluster's API server runs, and whether it serves.
func (s *suite) server(t *testing.T, cluster string) (*lab.Node, func() error) {
	t.Helper()
	c, err := s.m.Cluster(cluster)
	must(t, err)
	for _, n := range c.Nodes {
		if len(n.PIDs("clustermesh-apiserver")) > 0 {
			return n, func() error {
				_, err := n.Exec(t.Context(), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9474; printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3; grep -q ' 200 ' <&3")
				return err
			}
		}
	}
	t.Fatalf("no node of %s runs clustermesh-apiserver", cluster)
	return nil, nil
}

func (s *suite) killServer(t *testing.T) {
	s.disturb(t, func(t *testing.T) {
		for _, c := range []string{"west", "east"} {
			n, ready := s.server(t, c)
			killAndWait(t, n, "clustermesh-apiserver", ready)
		}
	})
	s.waitSynced(t, "west", "east")
}

// upgrade: west gets the next minor version, from its own image; the others stay,
// and go on with it to the end.
func (s *suite) upgrade(t *testing.T) {
	const next = "0.2.0-e2e"
	must(t, s.m.UseVersion(t.Context(), s.dir, next))
	s.disturb(t, func(t *testing.T) {
		_, err := s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "log.level=debug")
		must(t, err)
	})
	s.waitSynced(t, "west", "east")
	for _, cluster := range []string{"west", "east"} {
		for _, a := range s.status(t, cluster).Agents {
			if (a.Version == next) != (cluster == "west") {
				t.Errorf("the agent on %s has version %s", a.Node, a.Version)
			}
		}
	}
}

// cut: with the clusters out of each other's reach for minutes, routes stay and
// status says since when; healing brings no flap.
func (s *suite) cut(t *testing.T) {
	const long = 2 * time.Minute
	watch := watchRoutes(t, s.nodes(t)...)
	began := time.Now()
	must(t, s.m.Cut(t.Context(), "west", "east"))
	eventually(t, 90*time.Second, func() error {
		p := s.peer(t, "west", "east")
		if p.Connected {
			return fmt.Errorf("west still says that east is connected: %+v", p)
		}
		return nil
	})
	noticed := time.Now()
	time.Sleep(time.Until(began.Add(long))) // what happens after a while, if anything, has to happen
	s.waitMesh(t)
	for _, p := range s.status(t, "west").Peers {
		if p.Name == "east" && (p.Connected || p.Since.Before(began.Add(-time.Second)) || p.Since.After(noticed.Add(time.Second))) {
			t.Errorf("west says of east: connected %v since %v; want not, since between %v and %v", p.Connected, p.Since, began, noticed)
		}
	}
	must(t, s.m.Heal(t.Context(), "west", "east"))
	s.waitSynced(t, "west", "east")
	watch.check(t)
	reachAll(t, s.m, s.pods)
}

// wipe: the peer's etcd is gone and comes back empty under another name; the
// reader lists and replaces, and nothing is lost meanwhile.
func (s *suite) wipe(t *testing.T) {
	s.disturb(t, func(t *testing.T) {
		n, ready := s.server(t, "east")
		sh(t, n, "rm -rf /var/lib/clustermesh-apiserver/*")
		killAndWait(t, n, "clustermesh-apiserver", ready)
		s.waitSynced(t, "west", "east")
	})
}

// grow: a node that joins east is reached from west, and forgotten when it goes.
func (s *suite) grow(t *testing.T) {
	east, err := s.m.Cluster("east")
	must(t, err)
	added, err := east.AddNode(t.Context())
	must(t, err)
	s.waitRoutes(t, 10)
	pods, err := s.m.WaitPods(t.Context(), east, "probe", 3, 2*time.Minute)
	must(t, err)
	for _, p := range pods {
		if p.Node == added.Name {
			reachAll(t, s.m, []fixture.Pod{s.of("west")[1], p})
		}
	}
	must(t, east.RemoveNode(t.Context(), added))
	s.waitRoutes(t, 8)
}

// reboot: a node loses power and comes back; its pods get wired anew, no
// address leaks (invariant N6).
func (s *suite) reboot(t *testing.T) {
	n := node(t, s.m, "west-n2")
	must(t, n.Stop(t.Context()))
	must(t, n.Start(t.Context()))
	west, err := s.m.Cluster("west")
	must(t, err)
	must(t, west.WaitReady(t.Context(), 2*time.Minute))
	eventually(t, 2*time.Minute, func() error {
		pods, err := s.m.WaitPods(t.Context(), west, "probe", 2, time.Second)
		if err != nil {
			return err
		}
		for _, p := range pods {
			for _, other := range append(s.of("east"), s.of("south")...) {
				if _, err := s.m.Reach(t.Context(), other, p); err != nil {
					return err
				}
			}
		}
		s.pods = append(append(pods, s.of("east")...), s.of("south")...)
		return nil
	})
	eventually(t, 2*time.Minute, func() error {
		held := sh(t, n, "ls /var/lib/clustermesh/pods | wc -l")
		veths := sh(t, n, "ip -o link | grep -c 'cm[0-9a-f]\\{11\\}' || true")
		if held != veths {
			return fmt.Errorf("the journal holds %s pods, the node %s interfaces", held, veths)
		}
		return nil
	})
}

// readdress: a node gets other addresses, and the mesh API server on it with them;
// everybody follows, though nobody is left to tell where it is now.
func (s *suite) readdress(t *testing.T) {
	n := node(t, s.m, "east-n2")
	s.moveServer(t, "east", n)
	old := n.Addrs.V4.String()
	must(t, n.Readdress(t.Context(), 42))
	// Both ends must first notice that their connections are dead.
	eventually(t, time.Minute, func() error {
		if got := routes(t, node(t, s.m, "west-n1")); strings.Contains(got, "via "+old+" ") || !strings.Contains(got, "via "+n.Addrs.V4.String()+" ") {
			return fmt.Errorf("west-n1 has not followed from %s to %s:\n%s", old, n.Addrs.V4, got)
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		_, err := s.m.Reach(t.Context(), s.of("west")[0], s.of("east")[1])
		return err
	})
}

// moveServer makes a cluster's API server run on a node.
func (s *suite) moveServer(t *testing.T, cluster string, to *lab.Node) {
	t.Helper()
	from, _ := s.server(t, cluster)
	if from.Name == to.Name {
		return
	}
	sh(t, from, "kubectl cordon "+from.Name+"; kubectl delete pod -n clustermesh-system -l app.kubernetes.io/component=apiserver --wait")
	eventually(t, time.Minute, func() error {
		if len(to.PIDs("clustermesh-apiserver")) == 0 {
			return fmt.Errorf("%s does not run clustermesh-apiserver", to.Name)
		}
		return nil
	})
	sh(t, from, "kubectl uncordon "+from.Name)
	_, ready := s.server(t, cluster)
	eventually(t, time.Minute, ready)
	s.waitSynced(t, "west", cluster)
}

// disconnect: one side alone, then the other; nothing is left; then again.
func (s *suite) disconnect(t *testing.T) {
	_, err := s.m.CLI(t.Context(), "disconnect", "--context", "west", "east")
	must(t, err)
	s.waitRoutes(t, 4)
	if got := s.peers(t, "west"); got != "peer.clustermesh.io/south" {
		t.Errorf("west has peers %q, want south only", got)
	}
	_, err = s.m.CLI(t.Context(), "disconnect", "--context", "east", "west")
	must(t, err)
	if _, err := s.m.Reach(t.Context(), s.of("west")[0], s.of("south")[0]); err != nil {
		t.Errorf("west lost south with east: %v", err)
	}
	must(t, s.m.Connect(t.Context(), "east", "west"))
	s.waitMesh(t)
	reachAll(t, s.m, s.pods)
}

// uninstall refuses while there are peers, and then leaves nothing of ours on any
// node (invariant N8).
func (s *suite) uninstall(t *testing.T, before map[string]string) {
	if out, err := s.m.CLI(t.Context(), "uninstall", "--context", "south"); err == nil || !strings.Contains(out, "connected to east, west") {
		t.Errorf("uninstall of south, which has peers: %v", err)
	}
	_, err := s.m.CLI(t.Context(), "disconnect", "--context", "west", "--destination-context", "south")
	must(t, err)
	s.waitRoutes(t, 6) // to east, and to each other
	if got := s.peers(t, "south"); got != "peer.clustermesh.io/east" {
		t.Errorf("south has peers %q, want east only", got)
	}
	for _, c := range s.m.Clusters {
		_, err := s.m.CLI(t.Context(), "uninstall", "--context", c.Name, "--force")
		must(t, err)
		if got := sh(t, c.Nodes[0], "kubectl get ns,crd,clusterrole,clusterrolebinding -o name | grep -i clustermesh || true"); got != "" {
			t.Errorf("cluster %s still has %s", c.Name, got)
		}
	}
	after := snapshots(t, s.m)
	for name, was := range before {
		if is := after[name]; is != was {
			t.Errorf("node %s is not as it was before install:\n--- before\n%s\n--- after\n%s", name, was, is)
		}
	}
}

// snapshots is what each node holds that a CNI could have put there.
func snapshots(t *testing.T, m *fixture.Mesh) map[string]string {
	out := map[string]string{}
	for _, c := range m.Clusters {
		for _, n := range c.Nodes {
			out[n.Name] = sh(t, n, strings.Join([]string{
				"ip -o link | cut -d: -f2 | cut -d@ -f1 | sort",
				"ip rule; ip -6 rule",
				"ip route show table 7473 2>/dev/null; ip -6 route show table 7473 2>/dev/null",
				"ip neigh show nud permanent",
				"nft list tables | grep -i clustermesh",
				"ls -d /run/clustermesh* /var/lib/clustermesh* /sys/fs/bpf/* 2>/dev/null | grep -v clustermesh-lab",
				"ls -A /etc/cni/net.d /opt/cni/bin",
				"true",
			}, "; "))
		}
	}
	return out
}

// status is what clustermesh status says of a cluster, as far as it is looked at.
func (s *suite) status(t *testing.T, cluster string) (c struct {
	Agents []struct{ Node, Version string }
	Peers  []struct {
		Name      string
		Connected bool
		Since     time.Time
	}
}) {
	t.Helper()
	out, _ := s.m.CLIOut(t.Context(), "status", "--context", cluster, "-o", "json") // an error says that something is wrong
	report := struct{ Clusters []json.RawMessage }{}
	must(t, json.Unmarshal(out, &report))
	must(t, json.Unmarshal(report.Clusters[0], &c))
	return c
}

// peer is what the API server of a cluster says of a peer.
func (s *suite) peer(t *testing.T, cluster, peer string) (p struct{ Connected, Synced bool }) {
	t.Helper()
	out := sh(t, node(t, s.m, cluster+"-n1"), "kubectl get peer "+peer+" -o json")
	var object struct {
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	must(t, json.Unmarshal([]byte(out), &object))
	for _, c := range object.Status.Conditions {
		switch c.Type {
		case "Connected":
			p.Connected = c.Status == "True"
		case "Synced":
			p.Synced = c.Status == "True"
		}
	}
	return p
}

func (s *suite) waitSynced(t *testing.T, a, b string) {
	t.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		eventually(t, time.Minute, func() error {
			if p := s.peer(t, pair[0], pair[1]); !p.Connected || !p.Synced {
				return fmt.Errorf("%s says of %s: %+v", pair[0], pair[1], p)
			}
			return nil
		})
	}
}

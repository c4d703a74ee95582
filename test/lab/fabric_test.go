package lab

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestFabric wires nodes without Kubernetes and checks who reaches whom, whole and
// with cuts. West has two nodes, east one.
func TestFabric(t *testing.T) {
	needRoot(t)
	t.Parallel()
	type pair struct{ from, to string }
	inside, across, back := pair{"west-n1", "west-n2"}, pair{"west-n1", "east-n1"}, pair{"east-n1", "west-n2"}
	all := []pair{inside, across, back}
	tests := map[string]struct {
		cut  [2]string
		lost []pair
	}{
		"no cut":             {},
		"two nodes":          {[2]string{"west-n2", "west-n1"}, []pair{inside}},
		"nodes across":       {[2]string{"west-n1", "east-n1"}, []pair{across}},
		"clusters":           {[2]string{"west", "east"}, []pair{across, back}},
		"node from everyone": {[2]string{"west-n1", Everyone}, []pair{inside, across}},
		"everyone from node": {[2]string{Everyone, "east-n1"}, []pair{across, back}},
	}
	for _, fabric := range []Fabric{Shared, Routed} {
		l := wire(t, fabric)
		for name, tt := range tests {
			t.Run(string(fabric)+"/"+name, func(t *testing.T) {
				if tt.cut[0] != "" {
					if err := l.Cut(t.Context(), tt.cut[0], tt.cut[1]); err != nil {
						t.Fatal(err)
					}
				}
				for _, p := range all {
					want := !slices.Contains(tt.lost, p)
					if got := reaches(t, l, p.from, p.to, want); got != [2]bool{want, want} {
						t.Errorf("%s reaches %s over IPv4, IPv6: %v, want %v", p.from, p.to, got, want)
					}
				}
				if err := l.HealAll(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// wire powers the nodes of a two-cluster lab, and nothing else of it.
func wire(t *testing.T, fabric Fabric) *Lab {
	t.Helper()
	cfg := Config{
		Name: "labfabric", Fabric: fabric,
		Clusters: []ClusterConfig{{Name: "west", Nodes: 2}, {Name: "east", Nodes: 1}},
	}.withDefaults()
	groups, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	down := func() {
		if err := Down(context.Background(), cfg.Dir, cfg.Name); err != nil {
			t.Error(err)
		}
	}
	down()
	t.Cleanup(down)
	l := newLab(cfg, groups)
	l.parts = Parts{t.TempDir()}
	if err := l.save(false); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{groups.make(cfg.cgroupName()), l.ensureFabric(), l.buildOwn(t.Context())} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range l.Clusters {
		for _, n := range c.Nodes {
			if err := n.powerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

func node(t *testing.T, l *Lab, name string) *Node {
	t.Helper()
	found, err := l.ends(name)
	if err != nil {
		t.Fatal(err)
	}
	return found[0]
}

// reaches tells for each family whether a datagram gets from one node to the other.
// If it should, it has time: fresh links check addresses, neighbours must be found.
func reaches(t *testing.T, l *Lab, from, to string, should bool) (got [2]bool) {
	t.Helper()
	tries := 3
	if should {
		tries = 50
	}
	source, target := node(t, l, from), node(t, l, to)
	server, client := listen(t, target), listen(t, source)
	defer server.Close()
	defer client.Close()
	port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
	for i, addr := range target.Addrs.List() {
		got[i] = arrives(t, client, server, netip.AddrPortFrom(addr, port), tries)
	}
	return got
}

func listen(t *testing.T, n *Node) (conn net.PacketConn) {
	t.Helper()
	err := inNetns(n.Netns(), func() (err error) {
		conn, err = net.ListenPacket("udp", ":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// arrives sends a datagram every 100 ms until one arrives.
func arrives(t *testing.T, client, server net.PacketConn, to netip.AddrPort, tries int) bool {
	t.Helper()
	for range tries {
		// An error is an answer too: no route, no neighbour.
		_, _ = client.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to))
		if err := server.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.ReadFrom(make([]byte, 8)); err == nil {
			return true
		}
	}
	return false
}

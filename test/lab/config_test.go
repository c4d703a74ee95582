package lab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestValidate(t *testing.T) {
	one := []ClusterConfig{{Name: "west", Nodes: 2}}
	tests := map[string]struct {
		cfg  Config
		want string // part of the error; empty: none
	}{
		"defaults":             {Config{Clusters: one}, ""},
		"no clusters":          {Config{}, "clusters: 0 given"},
		"dash in lab name":     {Config{Name: "my-lab", Clusters: one}, `lab name "my-lab"`},
		"path as lab name":     {Config{Name: "../x", Clusters: one}, `lab name "../x"`},
		"long cluster name":    {Config{Clusters: []ClusterConfig{{Name: "abcdefghijkl", Nodes: 1}}}, "cluster name"},
		"same cluster twice":   {Config{Clusters: append(one, one...)}, "given twice"},
		"cluster named fabric": {Config{Clusters: []ClusterConfig{{Name: "fabric", Nodes: 1}}}, "cluster name"},
		"no nodes":             {Config{Clusters: []ClusterConfig{{Name: "west"}}}, "nodes of cluster west: 0 given"},
		"unknown stack":        {Config{Clusters: one, Stack: "ipv5"}, `stack "ipv5"`},
		"unknown fabric":       {Config{Clusters: one, Fabric: "x"}, `fabric "x"`},
		"unknown proxy mode":   {Config{Clusters: one, KubeProxy: "ipvs"}, `kube-proxy "ipvs"`},
		"across without CNI":   {Config{Clusters: one, BridgeAcross: true}, "bridge-across"},
		"bridge without CIDRs": {Config{Clusters: one, CNI: Bridge, NoNodeCIDRs: true}, "pod CIDRs"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := tt.cfg.withDefaults().validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestAddressPlan(t *testing.T) {
	prefixes := func(list ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	type plan struct {
		Pods, Services []netip.Prefix
		Node, Gateway  string
	}
	tests := map[string]struct {
		cfg  Config
		want plan
	}{
		"shared, dual": {Config{}, plan{
			prefixes("10.12.0.0/16", "fd00:10:12::/56"), prefixes("10.112.0.0/20", "fd00:10:112::/112"),
			"172.18.2.3,fd00:172:18::2:3", "172.18.0.1,fd00:172:18::1",
		}},
		"routed, dual": {Config{Fabric: Routed}, plan{
			prefixes("10.12.0.0/16", "fd00:10:12::/56"), prefixes("10.112.0.0/20", "fd00:10:112::/112"),
			"172.18.2.3,fd00:172:18:2::3", "172.18.2.254,fd00:172:18:2::fe",
		}},
		"IPv4":         {Config{Stack: IPv4}, plan{prefixes("10.12.0.0/16"), prefixes("10.112.0.0/20"), "172.18.2.3", "172.18.0.1"}},
		"routed, IPv6": {Config{Stack: IPv6, Fabric: Routed}, plan{prefixes("fd00:10:12::/56"), prefixes("fd00:10:112::/112"), "fd00:172:18:2::3", "fd00:172:18:2::fe"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Clusters = []ClusterConfig{{Name: "west", Nodes: 1}, {Name: "east", Nodes: 3}}
			cfg := tt.cfg.withDefaults()
			got := plan{
				cfg.Clusters[1].PodCIDRs, cfg.Clusters[1].ServiceCIDRs,
				cfg.nodeAddrs(2, 3).String(), cfg.gateway(2).String(),
			}
			equal := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if diff := cmp.Diff(tt.want, got, equal); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestStateSurvives writes a lab's state and reads it back as another process would.
func TestStateSurvives(t *testing.T) {
	cfg := Config{Name: "x", Dir: t.TempDir(), Clusters: []ClusterConfig{{Name: "west", Nodes: 2}}}.withDefaults()
	l := newLab(cfg, cgroups{})
	l.Clusters[0].Port = 1234
	l.Clusters[0].Nodes[1].Addrs = cfg.nodeAddrs(1, 50)
	l.Clusters[0].Nodes = append(l.Clusters[0].Nodes, l.Clusters[0].newNode(7))
	if err := l.save(true); err != nil {
		t.Fatal(err)
	}
	got, err := load(cfg.Dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	if diff := got.lab.cfg.differs(cfg); diff != "" || !got.complete {
		t.Errorf("read back: complete = %v, other %q", got.complete, diff)
	}
	c := got.lab.Clusters[0]
	if c.Port != 1234 || len(c.Nodes) != 3 || c.Nodes[2].Name != "west-n7" || c.Nodes[1].Addrs != cfg.nodeAddrs(1, 50) {
		t.Errorf("read back: %+v", c)
	}
}

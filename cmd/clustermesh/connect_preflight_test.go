package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// cluster is a healthy one whose addresses follow from its number.
func testFacts(name string, pods ...string) clusterFacts {
	facts := clusterFacts{Context: "ctx-" + name, Namespace: defaultNamespace, UID: "uid-" + name, Name: name, Version: "0.1.0",
		MinWire: 1, MaxWire: 1, Backend: model.EncapAuto, ServiceCIDRs: prefixes([]string{"10.96.0.0/16"}), PodCIDRs: prefixes(pods)}
	return facts
}

func testPair() pairFacts {
	west, east := testFacts("west", "10.1.0.0/16", "fd00:1::/48"), testFacts("east", "10.2.0.0/16", "fd00:2::/48")
	west.Nodes = []nodeAddrs{{"w1", []netip.Addr{netip.MustParseAddr("172.18.0.1"), netip.MustParseAddr("fd00:172::1")}}}
	east.Nodes = []nodeAddrs{{"e1", []netip.Addr{netip.MustParseAddr("172.18.0.2")}}}
	return pairFacts{Source: west, Destination: east,
		ToDestination: []status.Probe{{Endpoint: "172.18.0.2:7473", Reachable: true}},
		ToSource:      []status.Probe{{Endpoint: "172.18.0.1:7473", Reachable: true}}}
}

func testPeer(name string, podCIDRs ...string) v1alpha1.Peer {
	return v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PeerSpec{Import: v1alpha1.Import{PodCIDRs: podCIDRs}}}
}

func TestPreflight(t *testing.T) {
	remedyRange := "; " + anotherRange
	for _, test := range []struct {
		name   string
		change func(*pairFacts)
		want   []string // a leading ~ is a warning
	}{
		{"all well", func(*pairFacts) {}, nil},
		{"same cluster under two contexts", func(p *pairFacts) {
			p.Destination = p.Source
			p.Destination.Context = "ctx-east"
		}, []string{"contexts ctx-west and ctx-east: are the same cluster (kube-system has UID uid-west in both); name two different clusters with --context and --destination-context"}},
		{"equal names", func(p *pairFacts) { p.Destination.Name = "west" }, []string{
			`contexts ctx-west and ctx-east: both clusters are named "west"; a cluster's name is unique in the mesh: reinstall one of them with ` + "`clustermesh install --cluster-name NAME`"}},
		{"facts missing on both sides", func(p *pairFacts) {
			p.Source.Problems = []problem{{Object: "context ctx-west", What: "a"}}
			p.Destination.Problems = []problem{{Object: "context ctx-east", What: "b", Remedy: "c"}}
			p.Destination.Name = "west"
		}, []string{"context ctx-west: a", "context ctx-east: b; c"}},
		{"pod ranges overlap in part, both families", func(p *pairFacts) {
			p.Destination.PodCIDRs = prefixes([]string{"10.1.128.0/17", "fd00:1::/64"})
		}, []string{
			"peer east: podCIDR 10.1.128.0/17 overlaps podCIDR 10.1.0.0/16 of west" + remedyRange,
			"peer east: podCIDR fd00:1::/64 overlaps podCIDR fd00:1::/48 of west" + remedyRange}},
		{"no family in common", func(p *pairFacts) {
			p.Source.PodCIDRs, p.Destination.PodCIDRs = p.Source.PodCIDRs[:1], p.Destination.PodCIDRs[1:]
		}, []string{"contexts ctx-west and ctx-east: pods have no IP family in common: west has 10.1.0.0/16, east has fd00:2::/48; make one of the clusters dual stack"}},
		{"one is dual stack", func(p *pairFacts) { p.Source.PodCIDRs = p.Source.PodCIDRs[:1] }, nil},
		{"pods in the other's services", func(p *pairFacts) {
			p.Source.ServiceCIDRs = prefixes([]string{"10.2.0.0/20"})
		}, []string{"peer east: podCIDR 10.2.0.0/16 overlaps serviceCIDR 10.2.0.0/20 of west" + remedyRange}},
		{"pods in a connected peer's range, on either side", func(p *pairFacts) {
			p.Source.Peers = []v1alpha1.Peer{testPeer("north", "10.0.0.0/8"), testPeer("east", "10.2.0.0/16")}
			p.Destination.Peers = []v1alpha1.Peer{testPeer("south", "fd00:1::/56"), testPeer("odd", "rubbish")}
		}, []string{
			"peer east: podCIDR 10.2.0.0/16 overlaps 10.0.0.0/8, which peer north of west may announce" + remedyRange + ", or run `clustermesh disconnect --context ctx-west north` first",
			"peer west: podCIDR fd00:1::/48 overlaps fd00:1::/56, which peer south of east may announce" + remedyRange + ", or run `clustermesh disconnect --context ctx-east south` first"}},
		{"node address twice", func(p *pairFacts) { p.Destination.Nodes[0].Addrs = p.Source.Nodes[0].Addrs[1:] }, []string{
			"node e1 of east: address fd00:172::1 is also that of node w1 of west; nodes reach each other directly, so each needs an address of its own: give kubelet another --node-ip"}},
		{"node inside the other's pods", func(p *pairFacts) {
			p.Source.Nodes[0].Addrs = []netip.Addr{netip.MustParseAddr("10.2.3.4")}
		}, []string{"node w1 of west: address 10.2.3.4 lies inside podCIDR 10.2.0.0/16 of east" + remedyRange}},
		{"neighbouring minor versions", func(p *pairFacts) { p.Destination.Version = "0.2.3-rc.1" }, nil},
		{"versions apart", func(p *pairFacts) { p.Source.Version = "0.3.0" }, []string{
			"contexts ctx-west and ctx-east: clustermesh 0.3.0 and 0.1.0 are more than one minor version apart; upgrade the older one with `clustermesh upgrade --context ctx-east`"}},
		{"no common encoding", func(p *pairFacts) { p.Destination.MinWire, p.Destination.MaxWire = 2, 3 }, []string{
			"contexts ctx-west and ctx-east: have no encoding in common: west (clustermesh 0.1.0) reads 1 to 1, east (0.1.0) reads 2 to 3; upgrade the older one with `clustermesh upgrade --context ctx-west`"}},
		{"version of a development build", func(p *pairFacts) { p.Destination.Version = "main" }, []string{
			`~contexts ctx-west and ctx-east: versions "0.1.0" and "main" can't be compared; make sure that they are at most one minor version apart`}},
		{"direct on one side", func(p *pairFacts) { p.Destination.Backend = model.EncapDirect; p.Source.Backend = model.EncapVXLAN }, []string{
			"~cluster east: routing.backend is direct, so its nodes and those of west reach each other's pods only where they share a link; if they do not, run `clustermesh upgrade --context ctx-east --set routing.backend=auto`"}},
		{"vxlan against auto", func(p *pairFacts) { p.Destination.Backend = model.EncapVXLAN }, nil},
		{"no endpoint", func(p *pairFacts) { p.ToSource = nil }, []string{
			"cluster west: tells no endpoint of its mesh API; give one with --source-endpoint HOST:PORT, or for good with `clustermesh upgrade --context ctx-west --set apiserver.advertise={HOST:PORT}`"}},
		{"one endpoint of two answers", func(p *pairFacts) {
			p.ToDestination = append(p.ToDestination, status.Probe{Endpoint: "[fd00::2]:7473", Error: "no route to host"})
		}, []string{"~cluster east: endpoint [fd00::2]:7473 is unreachable from west: no route to host; let the nodes of west reach it on TCP port 7473, or give another endpoint with --destination-endpoint HOST:PORT"}},
		{"nothing answers, on either side", func(p *pairFacts) {
			p.ToDestination[0] = status.Probe{Endpoint: "172.18.0.2:7473", Error: "i/o timeout"}
			p.ToSource[0] = status.Probe{Endpoint: "172.18.0.1:80", Error: "certificate is for other names",
				Steps: []status.ProbeStep{{Name: status.ProbeTCP, OK: true}, {Name: status.ProbeCertificate}}}
		}, []string{
			"cluster east: endpoint 172.18.0.2:7473 is unreachable from west: i/o timeout; let the nodes of west reach it on TCP port 7473, or give another endpoint with --destination-endpoint HOST:PORT",
			"cluster west: endpoint 172.18.0.1:80 is unreachable from east: certificate is for other names; something else answers there: check the address, or give another one with --source-endpoint HOST:PORT"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair := testPair()
			test.change(&pair)
			if diff := cmp.Diff(test.want, problemTexts(preflight(pair))); diff != "" {
				t.Errorf("preflight (-want +got):\n%s", diff)
			}
		})
	}
}

func problemTexts(problems []problem) []string {
	var texts []string
	for _, p := range problems {
		text := p.String()
		if p.Warning {
			text = "~" + text
		}
		texts = append(texts, text)
	}
	return texts
}

// All failures are told at once, and a mirrored pair fails for the same reasons.
func TestPreflightCollectsAndMirrors(t *testing.T) {
	pair := testPair()
	pair.Destination.PodCIDRs = pair.Source.PodCIDRs
	pair.Destination.Nodes = pair.Source.Nodes
	pair.ToDestination = nil
	failures, _ := split(preflight(pair))
	if len(failures) != 5 { // two ranges, two addresses, one endpoint
		t.Errorf("%d failures: %q", len(failures), problemTexts(failures))
	}
	text := refusal("connect", failures).Error()
	if !strings.HasPrefix(text, "connect: 5 problems, nothing was changed:\n  - peer east: ") {
		t.Errorf("refusal: %s", text)
	}
	mirrored := pairFacts{Source: pair.Destination, Destination: pair.Source, ToDestination: pair.ToSource, ToSource: pair.ToDestination}
	if got, _ := split(preflight(mirrored)); len(got) != len(failures) {
		t.Errorf("mirrored pair: %d failures, want %d: %q", len(got), len(failures), problemTexts(got))
	}
}

func TestPreflightSiblings(t *testing.T) {
	west, east := testFacts("west", "10.1.0.0/16"), testFacts("east", "10.1.0.0/24")
	got := problemTexts(preflightSiblings(west, east))
	if len(got) != 1 || !strings.Contains(got[0], "podCIDR 10.1.0.0/24 overlaps podCIDR 10.1.0.0/16 of west") {
		t.Errorf("siblings: %q", got)
	}
}

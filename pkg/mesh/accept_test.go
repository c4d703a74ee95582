package mesh

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

func TestAccept(t *testing.T) {
	ca, err := pki.NewCA("east", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	peer := func(name string, created int64, edit func(*v1alpha1.PeerSpec), cidrs ...string) kube.Peer {
		p := &v1alpha1.Peer{Spec: v1alpha1.PeerSpec{Endpoints: []string{"192.0.2.1:7473"},
			Trust: v1alpha1.PeerTrust{CABundle: string(ca.CertPEM())}, Import: v1alpha1.Import{PodCIDRs: cidrs}}}
		p.Name = name
		if edit != nil {
			edit(&p.Spec)
		}
		row := kube.PeerRow(p)
		row.Created = created
		return row
	}
	const absent, silent = "absent", "silent" // without rules; with rules, but not dialled
	for name, c := range map[string]struct {
		peers []kube.Peer
		want  map[string]string // peer → "", or absent or silent and a part of the message
	}{
		"fine": {[]kube.Peer{peer("east", 1, nil, "10.2.0.0/16"), peer("west", 2, nil, "10.3.0.0/16", "fd00:3::/48")},
			map[string]string{"east": "", "west": ""}},
		"overlap: the older one wins": {[]kube.Peer{peer("a", 2, nil, "10.2.0.0/16"), peer("b", 1, nil, "10.2.128.0/17")},
			map[string]string{"a": absent + ": 10.2.0.0/16 overlaps 10.2.128.0/17 of Peer b", "b": ""}},
		"overlap: of the same age the smaller name": {[]kube.Peer{peer("b", 1, nil, "10.2.0.0/16"), peer("a", 1, nil, "10.2.0.0/16")},
			map[string]string{"a": "", "b": absent + ": of Peer a (spec.import.podCIDRs); disconnect"}},
		"one that is refused takes nothing": {[]kube.Peer{peer("a", 1, nil, "10.1.0.0/16", "10.2.0.0/16"), peer("b", 2, nil, "10.2.0.0/16")},
			map[string]string{"a": absent + ": overlaps 10.1.0.0/16 of this cluster's cluster.podCIDRs", "b": ""}},
		"our services":   {[]kube.Peer{peer("a", 1, nil, "10.96.4.0/24")}, map[string]string{"a": absent + ": cluster.serviceCIDRs"}},
		"our own name":   {[]kube.Peer{peer("us", 1, nil, "10.2.0.0/16")}, map[string]string{"us": absent + ": our own cluster's"}},
		"no cluster's":   {[]kube.Peer{peer("a.b", 1, nil, "10.2.0.0/16")}, map[string]string{"a.b": absent + ": RFC 1123"}},
		"everything":     {[]kube.Peer{peer("a", 1, nil, "0.0.0.0/0")}, map[string]string{"a": absent + ": is everything"}},
		"pod gateway":    {[]kube.Peer{peer("a", 1, nil, "169.254.0.0/16")}, map[string]string{"a": absent + ": link-local"}},
		"host bits":      {[]kube.Peer{peer("a", 1, nil, "10.2.0.1/16")}, map[string]string{"a": absent + ": write 10.2.0.0/16"}},
		"no network":     {[]kube.Peer{peer("a", 1, nil, "all")}, map[string]string{"a": absent + `: spec.import.podCIDRs[0]: "all"`}},
		"no node range":  {[]kube.Peer{peer("a", 1, func(s *v1alpha1.PeerSpec) { s.Import.NodeCIDRs = []string{"x"} }, "10.2.0.0/16")}, map[string]string{"a": absent + ": spec.import.nodeCIDRs[0]"}},
		"no certificate": {[]kube.Peer{peer("a", 1, func(s *v1alpha1.PeerSpec) { s.Trust.CABundle = "x" }, "10.2.0.0/16")}, map[string]string{"a": silent + ": spec.trust.caBundle"}},
		"no endpoint":    {[]kube.Peer{peer("a", 1, func(s *v1alpha1.PeerSpec) { s.Endpoints = nil }, "10.2.0.0/16")}, map[string]string{"a": silent + ": spec.endpoints is empty"}},
		"bad endpoint":   {[]kube.Peer{peer("a", 1, func(s *v1alpha1.PeerSpec) { s.Endpoints = []string{"a:1", "b"} }, "10.2.0.0/16")}, map[string]string{"a": silent + ": spec.endpoints[1]"}},
		"silent ones keep their range": {[]kube.Peer{peer("a", 1, func(s *v1alpha1.PeerSpec) { s.Endpoints = nil }, "10.2.0.0/16"), peer("b", 2, nil, "10.2.0.0/16")},
			map[string]string{"a": silent + ": spec.endpoints", "b": absent + ": of Peer a"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, peers := range [][]kube.Peer{c.peers, reversed(c.peers)} {
				for name, v := range Accept(ourselves, peers) {
					got := ""
					switch {
					case v.Rules == nil:
						got = absent + ": " + v.Err.Error()
					case v.Err != nil:
						got = silent + ": " + v.Err.Error()
					}
					state, text, _ := strings.Cut(c.want[name], ": ")
					if !strings.HasPrefix(got, state) || !strings.Contains(got, text) || state == "" && got != "" {
						t.Errorf("%s: %q, want %q", name, got, c.want[name])
					}
					if v.Usable() != (got == "") {
						t.Errorf("%s: usable %v", name, v.Usable())
					}
				}
			}
		})
	}
}

func reversed(p []kube.Peer) []kube.Peer {
	p = slices.Clone(p)
	slices.Reverse(p)
	return p
}

func TestDialable(t *testing.T) {
	for e, want := range map[string]bool{
		"192.0.2.1:7473": true, "[2001:db8::1]:7473": true, "lb.example:443": true,
		"127.0.0.1:7473": false, "[::1]:7473": false, "0.0.0.0:7473": false, "[fe80::1]:7473": false, "169.254.169.254:80": false,
		"192.0.2.1": false, "192.0.2.1:0": false, "": false, "192.0.2.1:99999": false,
	} {
		if got := dialable(e); got != want {
			t.Errorf("dialable(%q) is %v", e, got)
		}
	}
}

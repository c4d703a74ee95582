package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

func testCA(t *testing.T, cluster string) string {
	t.Helper()
	ca, err := pki.NewCA(cluster, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return string(ca.CertPEM())
}

func testLink(ca string) link {
	of := testFacts("east", "10.2.0.0/16")
	of.CABundle = ca
	have := testPeer("east", "10.2.0.0/16")
	have.Spec.Endpoints, have.Spec.Trust.CABundle = []string{"172.18.0.2:7473"}, ca
	return link{context: "ctx-west", cluster: "west", of: of, endpoints: []string{"172.18.0.2:7473"}, have: &have}
}

func TestLinkChanges(t *testing.T) {
	ca, other := testCA(t, "east"), testCA(t, "east")
	type brief struct {
		Field  string
		Breaks bool
	}
	for _, test := range []struct {
		name   string
		change func(*link)
		want   []brief
	}{
		{"none", func(*link) {}, nil},
		{"no Peer yet", func(l *link) { l.have = nil }, nil},
		{"one endpoint more is learnt from the cluster row", func(l *link) { l.endpoints = append(l.endpoints, "172.18.0.3:7473") }, nil},
		{"all endpoints moved", func(l *link) { l.endpoints = []string{"172.18.0.3:7473"} }, []brief{{"spec.endpoints", false}}},
		{"endpoint given by the user", func(l *link) { l.endpoints, l.given = append(l.endpoints, "mesh:1"), true }, []brief{{"spec.endpoints", true}}},
		{"wider range needs consent", func(l *link) { l.of.PodCIDRs = prefixes([]string{"10.2.0.0/15"}) }, []brief{{"spec.import.podCIDRs", false}}},
		{"second range needs consent", func(l *link) { l.of.PodCIDRs = prefixes([]string{"10.2.0.0/16", "10.7.0.0/16"}) }, []brief{{"spec.import.podCIDRs", false}}},
		{"somebody allowed more", func(l *link) { l.have.Spec.Import.PodCIDRs = []string{"10.0.0.0/8", "fd00::/8"} }, nil},
		{"new CA", func(l *link) { l.of.CABundle = other }, []brief{{"spec.trust.caBundle", true}}},
		{"CA joined by the next one", func(l *link) { l.of.CABundle += other }, []brief{{"spec.trust.caBundle", true}}},
		{"old CA withdrawn", func(l *link) { l.have.Spec.Trust.CABundle += other }, []brief{{"spec.trust.caBundle", false}}},
		{"CA in the Peer unreadable", func(l *link) { l.have.Spec.Trust.CABundle = "x" }, []brief{{"spec.trust.caBundle", true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := testLink(ca)
			test.change(&l)
			var got []brief
			for _, c := range l.changes() {
				got = append(got, brief{c.field, c.breaks})
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestManifest(t *testing.T) {
	l := testLink("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
	got, err := l.manifest()
	if err != nil {
		t.Fatal(err)
	}
	want := `---
# For cluster west (context ctx-west): its link to east.
apiVersion: clustermesh.io/v1alpha1
kind: Peer
metadata:
  name: east
spec:
  endpoints:
  - 172.18.0.2:7473
  import:
    podCIDRs:
    - 10.2.0.0/16
  trust:
    caBundle: |
      -----BEGIN CERTIFICATE-----
      MIIB
      -----END CERTIFICATE-----
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}

func TestConsent(t *testing.T) {
	changed := func() []link {
		l := testLink(testCA(t, "east"))
		l.of.PodCIDRs = prefixes([]string{"10.2.0.0/16", "10.7.0.0/16"})
		return []link{l}
	}
	for _, test := range []struct {
		name, answer string
		yes          bool
		links        []link
		wantErr      string
	}{
		{"yes", "y\n", false, changed(), ""},
		{"yes without newline", "yes", false, changed(), ""},
		{"no", "n\n", false, changed(), "not consented: nothing was changed"},
		{"enter", "\n", false, changed(), "not consented: nothing was changed"},
		{"no terminal", "", false, changed(), "no answer: nothing was changed; consent with --yes"},
		{"--yes", "", true, changed(), ""},
		{"nothing to ask", "", false, []link{testLink(testCA(t, "east"))}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			c := &connecting{options: &connectFlags{yes: test.yes}, in: strings.NewReader(test.answer), out: &out}
			got := ""
			if err := c.consent(test.links); err != nil {
				got = err.Error()
			}
			if got != test.wantErr {
				t.Errorf("consent: %q, want %q", got, test.wantErr)
			}
			if test.name == "yes" && !strings.Contains(out.String(), "peer east in context ctx-west:\n    spec.import.podCIDRs\n      + 10.7.0.0/16\n") {
				t.Errorf("shown:\n%s", out.String())
			}
		})
	}
}

func TestLinkWait(t *testing.T) {
	condition := func(kind, value, reason, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionStatus(value), Reason: reason, Message: message}
	}
	up := []metav1.Condition{condition("Accepted", "True", "", ""), condition("Connected", "True", "", ""), condition("Synced", "True", "", "")}
	for _, test := range []struct {
		name       string
		observed   int64
		conditions []metav1.Condition
		want       string
	}{
		{"up", 3, up, ""},
		{"up, but for an older spec", 2, up, "the mesh API server has not looked at it yet"},
		{"nothing said", 3, nil, "not connected yet"},
		{"not connected", 3, []metav1.Condition{condition("Connected", "False", "Unreachable", "dial tcp: refused")}, "not connected (Unreachable): dial tcp: refused"},
		{"connected only", 3, up[:2], "not synced yet"},
		{"refused spec comes first", 3, []metav1.Condition{condition("Connected", "False", "X", "y"), condition("Accepted", "False", "Overlap", "10.2.0.0/16")}, "not accepted (Overlap): 10.2.0.0/16"},
		{"reason without message", 3, []metav1.Condition{condition("Connected", "Unknown", "Starting", "")}, "not connected (Starting)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			peer := &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Generation: 3}, Status: v1alpha1.PeerStatus{ObservedGeneration: test.observed, Conditions: test.conditions}}
			if got := linkWait(peer); got != test.want {
				t.Errorf("linkWait: %q, want %q", got, test.want)
			}
		})
	}
}

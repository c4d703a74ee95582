package peerstatus

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

// good is a peer with which all is well.
func good() mesh.State {
	p := &v1alpha1.Peer{Spec: v1alpha1.PeerSpec{Import: v1alpha1.Import{PodCIDRs: []string{"10.2.0.0/16"}}}}
	p.Name, p.Generation = "east", 4
	return mesh.State{
		Object: kube.PeerRow(p), BeatAt: now,
		Header: &wire.Cluster{Name: "east", Product: "1.2.3", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, Endpoints: []string{"192.0.2.1:7473"}},
		Peer: status.Peer{Name: "east", Connected: true, Synced: true, Endpoint: "192.0.2.1:7473", HeartbeatSeconds: 2,
			Counts: map[string]int{"node": 3, "cluster": 1}},
	}
}

// TestConditions compares the reasons of Accepted, Connected, Synced, Admitted.
func TestConditions(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(*mesh.State)
		want    [4]string // reason, after a "!" if the condition is false
		message string    // of the condition that is false first
	}{
		"all is well": {func(*mesh.State) {}, [4]string{"Accepted", "Connected", "Synced", "Admitted"}, ""},
		"just made": {func(s *mesh.State) { s.Peer = status.Peer{HeartbeatSeconds: -1}; s.Header = nil },
			[4]string{"Accepted", "!Connecting", "!NotRead", "Admitted"}, "no endpoint has answered yet"},
		"being read": {func(s *mesh.State) { s.Synced, s.HeartbeatSeconds = false, -1 },
			[4]string{"Accepted", "!Listing", "!NotRead", "Admitted"}, "connected to 192.0.2.1:7473, rows are being read"},
		"never reached": {func(s *mesh.State) { s.Peer = status.Peer{HeartbeatSeconds: -1, Error: "connection refused"} },
			[4]string{"Accepted", "!Unreachable", "!NotRead", "Admitted"}, "connection refused"},
		"cut off later: what was read stays": {func(s *mesh.State) { s.Connected, s.Error, s.HeartbeatSeconds = false, "timeout", 400 },
			[4]string{"Accepted", "!Unreachable", "Synced", "Admitted"}, "timeout"},
		"silent": {func(s *mesh.State) { s.HeartbeatSeconds = 31 }, [4]string{"Accepted", "!Silent", "Synced", "Admitted"},
			"the mesh API answers, but its heartbeat has stopped: see whether the peer's clustermesh-apiserver reaches its Kubernetes"},
		"the Peer can't be used": {func(s *mesh.State) {
			s.Rejected = errors.New("overlaps")
			s.Connected, s.Synced = false, false
			s.Error = "overlaps"
		},
			[4]string{"!Invalid", "!NotAccepted", "!NotRead", "Admitted"}, "overlaps"},
		"refused rows": {func(s *mesh.State) {
			s.Refused = []status.Refusal{{Reason: "bad-key", Count: 1}, {Reason: "cidr-overlap", Count: 2, Example: "node/x"}}
		}, [4]string{"Accepted", "Connected", "Synced", "!RowsRefused"}, "rows are refused: bad-key (1), cidr-overlap (2); status.refused has examples"},
		"wider ranges than allowed": {func(s *mesh.State) {
			s.Header.PodCIDRs = append(s.Header.PodCIDRs, netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("10.2.7.0/24"))
		}, [4]string{"Accepted", "Connected", "Synced", "!WiderPodCIDRs"},
			"the peer announces pods in 10.9.0.0/16, which spec.import.podCIDRs does not allow; run `clustermesh connect --refresh --destination-context CONTEXT` or edit the Peer to allow it"},
	} {
		t.Run(name, func(t *testing.T) {
			st := good()
			c.edit(&st)
			got := Status(st, now, v1alpha1.PeerStatus{})
			var reasons [4]string
			message := ""
			for i, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionConnected, v1alpha1.ConditionSynced, v1alpha1.ConditionAdmitted} {
				cond := meta.FindStatusCondition(got.Conditions, kind)
				reasons[i] = cond.Reason
				if cond.Status != metav1.ConditionTrue {
					reasons[i] = "!" + cond.Reason
					if message == "" {
						message = cond.Message
					}
				}
				if cond.ObservedGeneration != 4 || !cond.LastTransitionTime.Time.Equal(now) {
					t.Errorf("%s: generation %d, time %v", kind, cond.ObservedGeneration, cond.LastTransitionTime)
				}
			}
			if reasons != c.want || message != c.message {
				t.Errorf("got %q, %q\nwant %q, %q", reasons, message, c.want, c.message)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	st := good()
	st.Refused = []status.Refusal{{Reason: "bad-key", Count: 1, Example: "node/X", Message: "capital"}}
	beat := metav1.NewTime(now).Rfc3339Copy()
	want := v1alpha1.PeerStatus{
		ObservedGeneration: 4, Endpoint: "192.0.2.1:7473", LastHeartbeat: &beat, Rows: map[string]int{"node": 3, "cluster": 1}, Nodes: 3,
		Announced: &v1alpha1.Announced{Version: "1.2.3", PodCIDRs: []string{"10.2.0.0/16"}, Endpoints: []string{"192.0.2.1:7473"}},
		Refused:   []v1alpha1.Refused{{Reason: "bad-key", Count: 1, Example: "node/X", Message: "capital"}},
	}
	got := Status(st, now, v1alpha1.PeerStatus{})
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(v1alpha1.PeerStatus{}, "Conditions")); d != "" {
		t.Error(d)
	}
	// Later, a condition that stays keeps its time, and what was announced is not forgotten.
	st.Header, st.Refused = nil, nil
	later := Status(st, now.Add(time.Hour), got)
	if c := meta.FindStatusCondition(later.Conditions, v1alpha1.ConditionConnected); !c.LastTransitionTime.Time.Equal(now) {
		t.Error("Connected did not change, but its time did")
	}
	if c := meta.FindStatusCondition(later.Conditions, v1alpha1.ConditionAdmitted); !c.LastTransitionTime.Time.Equal(now.Add(time.Hour)) {
		t.Error("Admitted changed, but its time did not")
	}
	if d := cmp.Diff(want.Announced, later.Announced); d != "" {
		t.Error(d)
	}
}

// A status is written no more often than it is worth.
func TestDue(t *testing.T) {
	base := Status(good(), now, v1alpha1.PeerStatus{})
	for name, c := range map[string]struct {
		edit func(*mesh.State)
		want time.Duration
	}{
		"nothing changed":       {func(*mesh.State) {}, 1<<63 - 1},
		"the heart beat":        {func(s *mesh.State) { s.BeatAt = now.Add(5 * time.Second) }, heartbeatEvery},
		"another number":        {func(s *mesh.State) { s.Counts = map[string]int{"node": 4, "cluster": 1} }, countsEvery},
		"another endpoint":      {func(s *mesh.State) { s.Endpoint = "192.0.2.2:7473" }, 0},
		"rows are refused":      {func(s *mesh.State) { s.Refused = []status.Refusal{{Reason: "limit", Count: 1}} }, 0},
		"the link is cut":       {func(s *mesh.State) { s.Connected, s.Error = false, "x" }, 0},
		"being read anew":       {func(s *mesh.State) { s.Synced, s.HeartbeatSeconds = false, -1 }, countsEvery},
		"announced differently": {func(s *mesh.State) { s.Header.Product = "1.2.4" }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			st := good()
			c.edit(&st)
			if got := due(base, Status(st, now.Add(time.Minute), base)); got != c.want {
				t.Errorf("due after %v, want %v", got, c.want)
			}
		})
	}
}

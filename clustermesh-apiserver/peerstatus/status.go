// Package peerstatus writes what the API server sees of each peer into the
// status of its Peer object. Status decides, Writer writes, and no more often
// than people and machines need it.
package peerstatus

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The reasons of a condition Connected that is about to change.
const (
	reasonConnecting = "Connecting"
	reasonListing    = "Listing"
)

// maxRefused bounds the reasons shown; there are not many more.
const maxRefused = 16

// Status is what the object should say, given what it says now: a condition
// that stays as it is keeps its time.
func Status(st mesh.State, now time.Time, old v1alpha1.PeerStatus) v1alpha1.PeerStatus {
	out := v1alpha1.PeerStatus{
		ObservedGeneration: st.Object.Generation,
		Conditions:         slices.Clone(old.Conditions),
		Endpoint:           st.Endpoint,
		Announced:          announced(st.Header, old.Announced),
		LastHeartbeat:      old.LastHeartbeat,
		Rows:               st.Counts,
		Nodes:              st.Counts[string(wire.KindNode)],
		Refused:            refused(st),
	}
	if !st.BeatAt.IsZero() {
		t := metav1.NewTime(st.BeatAt).Rfc3339Copy()
		out.LastHeartbeat = &t
	}
	if len(out.Rows) == 0 {
		out.Rows = nil
	}
	for _, c := range conditions(st) {
		c.ObservedGeneration = st.Object.Generation
		c.LastTransitionTime = metav1.NewTime(now)
		meta.SetStatusCondition(&out.Conditions, c)
	}
	return out
}

func conditions(st mesh.State) []metav1.Condition {
	return []metav1.Condition{accepted(st), connected(st), synced(st), admitted(st)}
}

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	s := metav1.ConditionFalse
	if ok {
		s = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: s, Reason: reason, Message: message}
}

func accepted(st mesh.State) metav1.Condition {
	if st.Rejected != nil {
		return condition(v1alpha1.ConditionAccepted, false, "Invalid", st.Rejected.Error())
	}
	return condition(v1alpha1.ConditionAccepted, true, "Accepted", "")
}

func connected(st mesh.State) metav1.Condition {
	const kind = v1alpha1.ConditionConnected
	switch {
	case st.Rejected != nil:
		return condition(kind, false, "NotAccepted", "the Peer can't be used, see condition Accepted")
	case !st.Connected && st.Error != "":
		return condition(kind, false, "Unreachable", st.Error)
	case !st.Connected:
		return condition(kind, false, reasonConnecting, "no endpoint has answered yet")
	case st.HeartbeatSeconds < 0 && !st.Synced:
		return condition(kind, false, reasonListing, "connected to "+st.Endpoint+", rows are being read")
	case st.HeartbeatSeconds < 0 || st.HeartbeatSeconds > mesh.StaleAfter.Seconds():
		return condition(kind, false, "Silent",
			"the mesh API answers, but its heartbeat has stopped: see whether the peer's clustermesh-apiserver reaches its Kubernetes")
	}
	return condition(kind, true, "Connected", "")
}

func synced(st mesh.State) metav1.Condition {
	switch {
	case st.Synced:
		return condition(v1alpha1.ConditionSynced, true, "Synced", "")
	case st.Error != "":
		return condition(v1alpha1.ConditionSynced, false, "NotRead", st.Error)
	}
	return condition(v1alpha1.ConditionSynced, false, "NotRead", "not all rows of the peer were read yet")
}

func admitted(st mesh.State) metav1.Condition {
	const kind = v1alpha1.ConditionAdmitted
	if wider := wider(st); len(wider) > 0 {
		return condition(kind, false, "WiderPodCIDRs", fmt.Sprintf(
			"the peer announces pods in %s, which spec.import.podCIDRs does not allow; run `clustermesh connect --refresh --destination-context CONTEXT` or edit the Peer to allow it",
			strings.Join(wider, ", ")))
	}
	if len(st.Refused) == 0 {
		return condition(kind, true, "Admitted", "")
	}
	var parts []string
	for _, r := range st.Refused {
		parts = append(parts, fmt.Sprintf("%s (%d)", r.Reason, r.Count))
	}
	return condition(kind, false, "RowsRefused", "rows are refused: "+strings.Join(parts, ", ")+"; status.refused has examples")
}

// wider lists the announced pod ranges that are not allowed.
func wider(st mesh.State) (out []string) {
	if st.Header == nil {
		return nil
	}
	allowed := st.Object.PodCIDRs()
	for _, p := range st.Header.PodCIDRs {
		ok := slices.ContainsFunc(allowed, func(a netip.Prefix) bool { return a.Bits() <= p.Bits() && a.Contains(p.Addr()) })
		if !ok {
			out = append(out, p.String())
		}
	}
	return out
}

// announced is what the peer says of itself, or said last: a server that starts
// with an empty store finds the peer's endpoints here.
func announced(h *wire.Cluster, last *v1alpha1.Announced) *v1alpha1.Announced {
	if h == nil {
		return last
	}
	out := &v1alpha1.Announced{Version: h.Product, Endpoints: h.Endpoints}
	for _, p := range h.PodCIDRs {
		out.PodCIDRs = append(out.PodCIDRs, p.String())
	}
	return out
}

func refused(st mesh.State) (out []v1alpha1.Refused) {
	for _, r := range st.Refused[:min(len(st.Refused), maxRefused)] {
		out = append(out, v1alpha1.Refused{Reason: r.Reason, Count: r.Count, Example: r.Example, Message: r.Message})
	}
	return out
}

package main

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// judgePod says how a pod is: what it says itself, unless it does not answer.
func judgePod(pod corev1.Pod, lines []status.Line, err error) podReport {
	report := podReport{Pod: pod.Name, Node: pod.Spec.NodeName, Level: status.OK}
	if err != nil {
		report.Level, report.Error = status.Degraded, err.Error()
		return report
	}
	levels := []status.Level{status.OK}
	for _, line := range lines {
		levels = append(levels, line.Level)
		if line.Level != status.OK {
			report.Lines = append(report.Lines, line)
		}
	}
	if !podReady(pod) {
		levels = append(levels, status.Degraded)
		report.Error = podTrouble(&pod)
	}
	report.Level = worstOf(levels)
	worstFirst(report.Lines, func(l status.Line) (status.Level, string) { return l.Level, l.Component + " " + l.Object })
	return report
}

func judgeServer(a answer[status.APIServer]) serverReport {
	if a.Said == nil {
		return serverReport{podReport: judgePod(a.Pod, nil, a.Err)}
	}
	report := serverReport{podReport: judgePod(a.Pod, a.Said.Lines, nil), Leader: a.Said.Leader, Rows: a.Said.Rows}
	report.Version = a.Said.Version
	return report
}

// judgeAgents gives every node a line, also those that lack an agent.
func judgeAgents(seen observed) []agentReport {
	var reports []agentReport
	for _, a := range seen.Agents {
		if a.Said == nil {
			reports = append(reports, agentReport{podReport: judgePod(a.Pod, nil, a.Err)})
			continue
		}
		report := agentReport{podReport: judgePod(a.Pod, a.Said.Lines, nil),
			Backend: a.Said.Backend, MTU: a.Said.MTU, Pods: a.Said.Pods, Remotes: len(a.Said.Nodes)}
		report.Version = a.Said.Version
		reports = append(reports, report)
	}
	for _, node := range seen.Nodes {
		if !slices.ContainsFunc(reports, func(r agentReport) bool { return r.Node == node.Name }) {
			reports = append(reports, agentReport{podReport: podReport{Node: node.Name, Level: status.Degraded, Error: "no agent pod"}})
		}
	}
	return reports
}

// judgePeer prefers what the API server that leads says now to what it last wrote into the object.
func judgePeer(peer v1alpha1.Peer, seen observed) peerReport {
	report := peerReport{Name: peer.Name, Conditions: peer.Status.Conditions}
	if peer.Status.Announced != nil {
		report.Version = peer.Status.Announced.Version
	}
	live := livePeer(peer.Name, seen.Servers)
	if live != nil {
		report.fromLive(*live)
	} else {
		report.fromObject(peer, seen.Servers)
	}
	report.Lines = append(report.Lines, conditionLines(peer, live != nil)...)
	report.Lines = append(report.Lines, replicaLines(peer.Name, report.Connected, seen.Servers)...)
	report.Level = report.judge()
	return report
}

func livePeer(name string, servers []answer[status.APIServer]) *status.Peer {
	var found *status.Peer
	for _, server := range servers {
		if server.Said == nil {
			continue
		}
		i := slices.IndexFunc(server.Said.Peers, func(p status.Peer) bool { return p.Name == name })
		if i >= 0 && (found == nil || server.Said.Leader) {
			found = &server.Said.Peers[i]
		}
	}
	return found
}

func (r *peerReport) fromLive(live status.Peer) {
	r.Connected, r.Synced, r.Endpoint = live.Connected, live.Synced, live.Endpoint
	r.Counts, r.Nodes, r.Refused = live.Counts, live.Counts["node"], live.Refused
	if !live.Since.IsZero() {
		r.Since = &live.Since
	}
	if live.HeartbeatSeconds >= 0 {
		r.Heartbeat = &live.HeartbeatSeconds
	}
	if live.Error != "" && !(live.Connected && live.Synced) {
		r.Lines = append(r.Lines, status.Line{Key: status.Key{Component: "connection"}, Level: status.Degraded, Message: live.Error})
	}
}

func (r *peerReport) fromObject(peer v1alpha1.Peer, servers []answer[status.APIServer]) {
	connected := meta.FindStatusCondition(peer.Status.Conditions, v1alpha1.ConditionConnected)
	if connected != nil {
		r.Connected = connected.Status == metav1.ConditionTrue
		if since := connected.LastTransitionTime.Time; !since.IsZero() {
			r.Since = &since
		}
	}
	r.Synced = meta.IsStatusConditionTrue(peer.Status.Conditions, v1alpha1.ConditionSynced)
	r.Endpoint, r.Counts, r.Nodes = peer.Status.Endpoint, peer.Status.Rows, peer.Status.Nodes
	for _, refused := range peer.Status.Refused {
		r.Refused = append(r.Refused, status.Refusal(refused))
	}
	why := "no mesh API server answered"
	if slices.ContainsFunc(servers, func(a answer[status.APIServer]) bool { return a.Said != nil }) {
		why = "the mesh API server has no link to it"
	}
	r.Lines = append(r.Lines, status.Line{Key: status.Key{Component: "status"}, Level: status.Degraded,
		Message: why + "; this is what the Peer object says"})
}

// conditionLines are the conditions that want attention. Those that an API server answered for are left out, since the
// object lags behind; Admitted repeats what the refused rows say.
func conditionLines(peer v1alpha1.Peer, answered bool) []status.Line {
	skip := []string{v1alpha1.ConditionAdmitted}
	if answered {
		skip = append(skip, v1alpha1.ConditionConnected, v1alpha1.ConditionSynced)
	}
	var lines []status.Line
	for _, c := range peer.Status.Conditions {
		if c.Status == metav1.ConditionTrue || slices.Contains(skip, c.Type) {
			continue
		}
		lines = append(lines, status.Line{Key: status.Key{Component: c.Type}, Level: status.Degraded,
			Message: fmt.Sprintf("not %s (%s): %s", strings.ToLower(c.Type), c.Reason, c.Message), Since: c.LastTransitionTime.Time})
	}
	return lines
}

// replicaLines name API servers that see the link otherwise: agents behind those have no live data of the peer.
func replicaLines(name string, connected bool, servers []answer[status.APIServer]) []status.Line {
	var lines []status.Line
	for _, server := range servers {
		if server.Said == nil {
			continue
		}
		i := slices.IndexFunc(server.Said.Peers, func(p status.Peer) bool { return p.Name == name })
		if i >= 0 && server.Said.Peers[i].Connected != connected {
			lines = append(lines, status.Line{Key: status.Key{Component: "replica", Object: server.Pod.Name}, Level: status.Degraded,
				Message: fmt.Sprintf("sees it otherwise (connected: %v) %s", server.Said.Peers[i].Connected, server.Said.Peers[i].Error)})
		}
	}
	return lines
}

func (r *peerReport) judge() status.Level {
	levels := []status.Level{status.OK}
	if !r.Connected {
		levels = append(levels, status.Down)
	}
	if !r.Synced || len(r.Refused) > 0 {
		levels = append(levels, status.Degraded)
	}
	for _, line := range r.Lines {
		levels = append(levels, line.Level)
	}
	return worstOf(levels)
}

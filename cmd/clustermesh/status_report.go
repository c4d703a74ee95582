package main

import (
	"cmp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// meshReport is what `clustermesh status -o json` prints.
type meshReport struct {
	Level    status.Level    `json:"level"` // the worst of all clusters
	Clusters []clusterReport `json:"clusters"`
}

// clusterReport is one context.
type clusterReport struct {
	Context   string         `json:"context"`
	Namespace string         `json:"namespace"`
	Cluster   string         `json:"cluster,omitempty"`
	Level     status.Level   `json:"level"`
	Error     string         `json:"error,omitempty"` // the cluster could not be asked
	Servers   []serverReport `json:"apiservers"`
	Peers     []peerReport   `json:"peers"`
	Agents    []agentReport  `json:"agents"`
}

// podReport is common to the pods of clustermesh.
type podReport struct {
	Pod     string        `json:"pod,omitempty"` // empty: there is none
	Node    string        `json:"node"`
	Level   status.Level  `json:"level"`
	Version string        `json:"version,omitempty"`
	Error   string        `json:"error,omitempty"` // why it did not answer
	Lines   []status.Line `json:"lines,omitempty"`
}

type serverReport struct {
	podReport
	Leader bool  `json:"leader"`
	Rows   int64 `json:"rows"`
}

type agentReport struct {
	podReport
	Backend string `json:"backend,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Pods    int    `json:"pods"`
	Remotes int    `json:"remoteNodes"`
}

// peerReport is a link as this side sees it.
type peerReport struct {
	Name       string             `json:"name"`
	Level      status.Level       `json:"level"`
	Connected  bool               `json:"connected"`
	Synced     bool               `json:"synced"`
	Since      *time.Time         `json:"since,omitempty"` // of connected's last change
	Heartbeat  *float64           `json:"heartbeatAgeSeconds,omitempty"`
	Endpoint   string             `json:"endpoint,omitempty"`
	Version    string             `json:"version,omitempty"`
	Nodes      int                `json:"nodes"`
	Counts     map[string]int     `json:"counts,omitempty"`
	Refused    []status.Refusal   `json:"refused,omitempty"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	Lines      []status.Line      `json:"lines,omitempty"`
}

// judge turns what was seen into a report, the worst of each list first.
func judge(seen observed) clusterReport {
	report := clusterReport{Context: seen.Context, Namespace: seen.Namespace, Cluster: seen.Cluster,
		Servers: []serverReport{}, Peers: []peerReport{}, Agents: []agentReport{}}
	if seen.Err != nil {
		report.Level, report.Error = status.Down, seen.Err.Error()
		return report
	}
	for _, a := range seen.Servers {
		report.Servers = append(report.Servers, judgeServer(a))
	}
	report.Agents = append(report.Agents, judgeAgents(seen)...)
	for _, peer := range seen.Peers {
		report.Peers = append(report.Peers, judgePeer(peer, seen))
	}
	worstFirst(report.Servers, func(s serverReport) (status.Level, string) { return s.Level, s.Pod })
	worstFirst(report.Agents, func(a agentReport) (status.Level, string) { return a.Level, a.Node })
	worstFirst(report.Peers, func(p peerReport) (status.Level, string) { return p.Level, p.Name })
	report.Level = report.worst()
	return report
}

// worst is the level of the whole cluster. Without any API server there is no mesh, whatever else works.
func (r clusterReport) worst() status.Level {
	if len(r.Servers) == 0 {
		return status.Down
	}
	levels := []status.Level{status.OK}
	for _, s := range r.Servers {
		levels = append(levels, s.Level)
	}
	for _, p := range r.Peers {
		levels = append(levels, p.Level)
	}
	for _, a := range r.Agents {
		levels = append(levels, a.Level)
	}
	return worstOf(levels)
}

// worstOf is OK, Degraded or Down.
func worstOf(levels []status.Level) status.Level {
	worst := 0
	for _, level := range levels {
		worst = max(worst, severity(level))
	}
	return [...]status.Level{status.OK, status.Degraded, status.Down}[worst]
}

// severity orders levels. One that this version does not know counts as bad: a newer pod thought it worth a word.
func severity(level status.Level) int {
	switch level {
	case status.OK, status.Info:
		return 0
	case status.Down:
		return 2
	}
	return 1
}

func worstFirst[T any](rows []T, key func(T) (status.Level, string)) {
	slices.SortStableFunc(rows, func(x, y T) int {
		xLevel, xName := key(x)
		yLevel, yName := key(y)
		return cmp.Or(cmp.Compare(severity(yLevel), severity(xLevel)), cmp.Compare(xName, yName))
	})
}

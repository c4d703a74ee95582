package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// quietNodes is up to how many nodes that are well are listed unasked.
const quietNodes = 20

// renderStatus is the report for people. It marks with ! what wants attention.
func renderStatus(report meshReport, now time.Time, allNodes bool) *text {
	t := &text{}
	for i, cluster := range report.Clusters {
		if i > 0 {
			t.line()
		}
		renderCluster(t, cluster, now, allNodes)
	}
	return t
}

func renderCluster(t *text, r clusterReport, now time.Time, allNodes bool) {
	name := cmp.Or(r.Cluster, "unknown")
	t.table([][]cell{{plain(fmt.Sprintf("Cluster %s (context %s)", name, r.Context)), {string(r.Level), r.Level}}})
	if r.Error != "" {
		t.line(cell{"  ! " + printable(r.Error), status.Down})
		return
	}
	renderServers(t, r)
	renderPeers(t, r, now)
	renderAgents(t, r, allNodes)
}

func renderServers(t *text, r clusterReport) {
	t.line()
	if len(r.Servers) == 0 {
		t.line(cell{"  ! no mesh API server: see `" + kubectl(r) + " describe deployment " + apiserverName + "`", status.Down})
		return
	}
	rows := [][]cell{plains("  API SERVER", "STATE", "NODE", "VERSION", "ROLE", "ROWS")}
	for _, s := range r.Servers {
		role := "follower"
		if s.Leader {
			role = "leader"
		}
		counts := fmt.Sprint(s.Rows)
		if s.Version == "" {
			role, counts = "-", "-"
		}
		rows = append(rows, []cell{plain("  " + s.Pod), {string(s.Level), s.Level}, plain(s.Node),
			plain(cmp.Or(s.Version, "-")), plain(role), plain(counts)})
		rows = append(rows, podLines(s.podReport)...)
	}
	t.table(rows)
}

func renderPeers(t *text, r clusterReport, now time.Time) {
	t.line()
	if len(r.Peers) == 0 {
		t.line(plain("  no peers: connect one with `clustermesh connect --context " + r.Context + " --destination-context …`"))
		return
	}
	rows := [][]cell{plains("  PEER", "STATE", "REACHABLE", "SYNCED", "HEARTBEAT", "ENDPOINT", "VERSION", "NODES", "ROWS", "REFUSED")}
	for _, p := range r.Peers {
		rows = append(rows, []cell{plain("  " + p.Name), {string(p.Level), p.Level}, plain(reachableText(p, now)), plain(yesNo(p.Synced)),
			plain(heartbeatText(p)), plain(printable(cmp.Or(p.Endpoint, "-"))), plain(printable(cmp.Or(p.Version, "-"))),
			plain(fmt.Sprint(p.Nodes)), plain(fmt.Sprint(total(p.Counts))), plain(fmt.Sprint(refused(p)))})
		rows = append(rows, peerLines(p, r)...)
	}
	t.table(rows)
}

// peerLines explain what is wrong with a link, and end with where to look.
func peerLines(p peerReport, r clusterReport) [][]cell {
	var rows [][]cell
	for _, line := range p.Lines {
		rows = append(rows, attention("", line))
	}
	for _, f := range p.Refused {
		rows = append(rows, full(status.Degraded, "    ! "+printable(refusalText(f))))
	}
	if !p.Connected {
		rows = append(rows, full("", "      → clustermesh troubleshoot --context "+r.Context+" "+p.Name))
	}
	return rows
}

func renderAgents(t *text, r clusterReport, all bool) {
	t.line()
	good := 0
	rows := [][]cell{plains("  NODE", "STATE", "VERSION", "BACKEND", "MTU", "PODS", "REMOTE NODES")}
	for _, a := range r.Agents {
		if a.Level == status.OK {
			if good++; good > quietNodes && !all {
				continue
			}
		}
		row := []cell{plain("  " + a.Node), {string(a.Level), a.Level}}
		if a.Version == "" {
			row = append(row, plains("-", "-", "-", "-", "-")...)
		} else {
			row = append(row, plains(a.Version, a.Backend, fmt.Sprint(a.MTU), fmt.Sprint(a.Pods), fmt.Sprint(a.Remotes))...)
		}
		rows = append(append(rows, row), podLines(a.podReport)...)
	}
	if good > quietNodes && !all {
		rows = append(rows, full("", fmt.Sprintf("  … and %d more nodes that are ok (--all-nodes)", good-quietNodes)))
	}
	t.table(rows)
}

func podLines(p podReport) [][]cell {
	var rows [][]cell
	if p.Error != "" {
		rows = append(rows, full(p.Level, "    ! "+printable(p.Error)))
	}
	for _, line := range p.Lines {
		rows = append(rows, attention(line.Component, line))
	}
	return rows
}

// attention is a status line: whose, what, and what to do.
func attention(component string, line status.Line) []cell {
	mark, subject := "! ", strings.TrimSpace(component+" "+line.Object)
	if severity(line.Level) == 0 {
		mark = "  "
	}
	if subject != "" {
		subject += ": "
	}
	message := subject + strings.TrimSuffix(line.Message, ": ")
	if line.Remedy != "" {
		message += "; " + line.Remedy
	}
	return full(line.Level, "    "+mark+printable(message))
}

// firstTrouble is what a wait says it waits for.
func firstTrouble(report meshReport) string {
	for _, c := range report.Clusters {
		if c.Error != "" {
			return fmt.Sprintf("context %s: %s", c.Context, c.Error)
		}
		for _, p := range c.Peers {
			if p.Level != status.OK {
				return fmt.Sprintf("peer %s of %s is %s", p.Name, c.Cluster, p.Level) + because(p.Lines)
			}
		}
		for _, s := range c.Servers {
			if s.Level != status.OK {
				return fmt.Sprintf("%s of %s is %s", s.Pod, c.Cluster, s.Level) + because(s.Lines)
			}
		}
		for _, a := range c.Agents {
			if a.Level != status.OK {
				return fmt.Sprintf("the agent on %s of %s is %s", a.Node, c.Cluster, a.Level) + because(a.Lines)
			}
		}
	}
	return "a mesh API server"
}

// because is the first of the lines, the worst one.
func because(lines []status.Line) string {
	if len(lines) == 0 {
		return ""
	}
	return " (" + printable(lines[0].Message) + ")"
}

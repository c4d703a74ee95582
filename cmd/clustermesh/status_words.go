package main

import (
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/pkg/status"
)

func reachableText(p peerReport, now time.Time) string {
	answer := yesNo(p.Connected)
	if p.Since != nil {
		answer += ", for " + short(now.Sub(*p.Since))
	}
	return answer
}

func refusalText(f status.Refusal) string {
	message := fmt.Sprintf("%s refused, %s", counted(int(f.Count), "row"), f.Reason)
	if f.Message != "" {
		message += ": " + f.Message
	}
	if f.Example != "" {
		message += " (for example " + f.Example + ")"
	}
	return message
}

func heartbeatText(p peerReport) string {
	if p.Heartbeat == nil {
		return "-"
	}
	return short(time.Duration(*p.Heartbeat*float64(time.Second))) + " ago"
}

// short is a duration with the precision that people read.
func short(d time.Duration) string {
	switch d = max(0, d); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

func total(counts map[string]int) int {
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return sum
}

func refused(p peerReport) int64 {
	var sum int64
	for _, r := range p.Refused {
		sum += r.Count
	}
	return sum
}

func kubectl(r clusterReport) string {
	return fmt.Sprintf("kubectl --context %s -n %s", r.Context, r.Namespace)
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

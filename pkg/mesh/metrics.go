package mesh

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector tells Prometheus how the peers are doing. It counts on scrape.
type Collector struct {
	set                                   *Set
	up, synced, age, rows, refused, lists *prometheus.Desc
}

// NewCollector returns the collector of a set.
func NewCollector(s *Set) *Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"peer"}, labels...), nil)
	}
	return &Collector{
		set:     s,
		up:      desc("clustermesh_peer_up", "1 while the peer's mesh API answers."),
		synced:  desc("clustermesh_peer_synced", "1 once all that the peer publishes was taken in."),
		age:     desc("clustermesh_peer_heartbeat_age_seconds", "Time since the peer's heartbeat changed; absent before the first."),
		rows:    desc("clustermesh_peer_rows", "Admitted rows, by kind.", "kind"),
		refused: desc("clustermesh_peer_refused_rows", "Rows that are refused now, by reason.", "reason"),
		lists:   desc("clustermesh_peer_lists_total", "Full lists of the peer's rows since its link began."),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.synced, c.age, c.rows, c.refused, c.lists} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range c.set.States(ctx) {
		gauge(c.up, number(s.Connected), s.Name)
		gauge(c.synced, number(s.Synced), s.Name)
		ch <- prometheus.MustNewConstMetric(c.lists, prometheus.CounterValue, float64(s.Lists), s.Name)
		if s.HeartbeatSeconds >= 0 {
			gauge(c.age, s.HeartbeatSeconds, s.Name)
		}
		for kind, n := range s.Counts {
			gauge(c.rows, float64(n), s.Name, kind)
		}
		for _, r := range s.Refused {
			gauge(c.refused, float64(r.Count), s.Name, r.Reason)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

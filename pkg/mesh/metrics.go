package mesh

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector tells Prometheus how the peers are doing. It counts on scrape.
type Collector struct{ set *Set }

// NewCollector returns the collector of a set.
func NewCollector(s *Set) *Collector { return &Collector{s} }

func peerDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"peer"}, labels...), nil)
}

func descs() (up, synced, age, rows, refused *prometheus.Desc) {
	return peerDesc("clustermesh_peer_up", "1 while the peer's mesh API answers."),
		peerDesc("clustermesh_peer_synced", "1 once all that the peer publishes was taken in."),
		peerDesc("clustermesh_peer_heartbeat_age_seconds", "Time since the peer's heartbeat changed; absent before the first."),
		peerDesc("clustermesh_peer_rows", "Admitted rows, by kind.", "kind"),
		peerDesc("clustermesh_peer_refused_rows", "Rows that are refused now, by reason.", "reason")
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	up, synced, age, rows, refused := descs()
	for _, d := range []*prometheus.Desc{up, synced, age, rows, refused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	up, synced, age, rows, refused := descs()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range c.set.States(ctx) {
		gauge(up, number(s.Connected), s.Name)
		gauge(synced, number(s.Synced), s.Name)
		if s.HeartbeatSeconds >= 0 {
			gauge(age, s.HeartbeatSeconds, s.Name)
		}
		for kind, n := range s.Counts {
			gauge(rows, float64(n), s.Name, kind)
		}
		for _, r := range s.Refused {
			gauge(refused, float64(r.Count), s.Name, r.Reason)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

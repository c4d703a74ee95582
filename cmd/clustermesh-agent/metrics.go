package main

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/datapath/nft"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/status"
)

var (
	descDrops = prometheus.NewDesc("clustermesh_drops_total", "Packets that the node's filters dropped, by reason.", []string{"reason"}, nil)
	descSocks = prometheus.NewDesc("clustermesh_socketlb_sockets_total", "Sockets and datagrams to Services, by outcome: forwarded to a backend, or missed and left to nftables.", []string{"outcome"}, nil)
	descLeft  = prometheus.NewDesc("clustermesh_socketlb_left_fronts", "Addresses of Services that have no room in the maps of socket load-balancing and are left to nftables.", nil, nil)
	descFull  = prometheus.NewDesc("clustermesh_services_affinity_full_total", "Clients of Services with session affinity that could not be remembered, for the kernel's map was full.", nil, nil)
	descLines = prometheus.NewDesc("clustermesh_status_lines", "Lines of the agent's status, by level.", []string{"level"}, nil)
	descReady = prometheus.NewDesc("clustermesh_agent_ready", "1 while pods can be wired.", nil, nil)
)

// collector counts, on scrape, what the kernel and the board hold.
type collector struct{ *agent }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDrops, descSocks, descLeft, descFull, descLines, descReady} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, read := range []func(context.Context) (map[string]nft.Counter, error){c.loops.filter.Counters, c.services.target.Counters} {
		counters, err := read(ctx)
		if err != nil {
			ch <- prometheus.NewInvalidMetric(descDrops, err)
		}
		if full, has := counters[nft.AffinityFull]; has {
			ch <- prometheus.MustNewConstMetric(descFull, prometheus.CounterValue, float64(full.Packets))
			delete(counters, nft.AffinityFull)
		}
		for name, n := range counters {
			ch <- prometheus.MustNewConstMetric(descDrops, prometheus.CounterValue, float64(n.Packets), strings.TrimPrefix(name, "drop_"))
		}
	}
	sockets, err := socketlb.Outcomes(c.opt.pins)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descSocks, err)
	}
	for outcome, n := range sockets {
		ch <- prometheus.MustNewConstMetric(descSocks, prometheus.CounterValue, float64(n), outcome)
	}
	ch <- prometheus.MustNewConstMetric(descLeft, prometheus.GaugeValue, float64(c.services.fast.left.Load()))
	levels := map[status.Level]int{status.OK: 0, status.Info: 0, status.Degraded: 0, status.Down: 0}
	for _, l := range c.board.Lines() {
		levels[l.Level]++
	}
	for level, n := range levels {
		ch <- prometheus.MustNewConstMetric(descLines, prometheus.GaugeValue, float64(n), string(level))
	}
	ready := 1.0
	if c.notReady() != nil {
		ready = 0
	}
	ch <- prometheus.MustNewConstMetric(descReady, prometheus.GaugeValue, ready)
}

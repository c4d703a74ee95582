package balancer

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/lbpool"
)

// Metrics tell how many addresses pools have. They are there while this replica
// leads.
type Metrics struct {
	addresses *prometheus.Desc

	mu    sync.Mutex
	pools map[string]lbpool.PoolState // guarded by mu
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{addresses: prometheus.NewDesc("clustermesh_lb_pool_addresses",
		"Addresses of load balancer pools, by family and state: capacity, used.", []string{"pool", "family", "state"}, nil)}
	r.MustRegister(m)
	return m
}

func (m *Metrics) set(pools map[string]lbpool.PoolState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pools = pools
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.addresses }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	pools := m.pools // never changed, only replaced
	m.mu.Unlock()
	for name, p := range pools {
		for _, x := range []struct {
			family, state string
			n             int64
		}{{"ipv4", "capacity", p.Capacity4}, {"ipv4", "used", p.Used4}, {"ipv6", "capacity", p.Capacity6}, {"ipv6", "used", p.Used6}} {
			ch <- prometheus.MustNewConstMetric(m.addresses, prometheus.GaugeValue, float64(x.n), name, x.family, x.state)
		}
	}
}

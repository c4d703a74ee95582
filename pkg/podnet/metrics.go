package podnet

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/ipam"
)

// Metrics counts CNI requests and addresses. A nil Metrics counts nothing.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	pool     *prometheus.GaugeVec
}

// NewMetrics registers podnet's metrics with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "clustermesh_cni_requests_total",
			Help: "CNI requests by verb and CNI error code; code 0 is success.",
		}, []string{"verb", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "clustermesh_cni_request_duration_seconds",
			Help:    "Time to serve a CNI request in the agent.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, []string{"verb"}),
		pool: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "clustermesh_ipam_addresses",
			Help: "Pod addresses of this node by family and state (used, capacity).",
		}, []string{"family", "state"}),
	}
	reg.MustRegister(m.requests, m.duration, m.pool)
	return m
}

func (m *Metrics) request(verb string, code uint, took time.Duration) {
	if m == nil {
		return
	}
	switch verb { // the label stays bounded, whatever the caller sends
	case "ADD", "DEL", "CHECK", "STATUS", "GC":
	default:
		verb = "other"
	}
	m.requests.WithLabelValues(verb, strconv.FormatUint(uint64(code), 10)).Inc()
	m.duration.WithLabelValues(verb).Observe(took.Seconds())
}

func (m *Metrics) addresses(u ipam.Usage) {
	if m == nil {
		return
	}
	family := "ipv4"
	if u.Prefix.Addr().Is6() {
		family = "ipv6"
	}
	m.pool.WithLabelValues(family, "used").Set(float64(u.Used))
	m.pool.WithLabelValues(family, "capacity").Set(float64(u.Capacity))
}

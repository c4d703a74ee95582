package serve

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/clustermesh/clustermesh/pkg/pki"
)

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// meters count what the mesh API is asked, and how fast changes of peers get through.
type meters struct {
	requests    *prometheus.CounterVec
	refused     *prometheus.CounterVec
	connections *prometheus.GaugeVec
	propagation prometheus.Histogram
	rows        prometheus.Counter
}

func newMeters(r *prometheus.Registry) *meters {
	m := &meters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "clustermesh_meshapi_requests_total",
			Help: "Requests to the mesh API that have ended, by role of the client, method and gRPC code."}, []string{"role", "method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "clustermesh_meshapi_refused_total",
			Help: "Handshakes and requests that the mesh API refused, by reason."}, []string{"reason"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "clustermesh_meshapi_connections",
			Help: "Open connections to the mesh API, by role of the client."}, []string{"role"}),
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "clustermesh_mirror_batch_seconds",
			Help: "Time from the arrival of a batch of a peer's changes to its being served.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		rows: prometheus.NewCounter(prometheus.CounterOpts{Name: "clustermesh_mirror_changes_total",
			Help: "Changes of peers' rows that were taken in after their first list."}),
	}
	r.MustRegister(m.requests, m.refused, m.connections, m.propagation, m.rows)
	return m
}

// Request implements etcdserver.FrontMeter.
func (m *meters) Request(role pki.Role, method string, code codes.Code) {
	m.requests.WithLabelValues(string(role), method, code.String()).Inc()
}

// Refused implements etcdserver.FrontMeter.
func (m *meters) Refused(reason string) { m.refused.WithLabelValues(reason).Inc() }

// Connections implements etcdserver.FrontMeter.
func (m *meters) Connections(role pki.Role, delta int) {
	m.connections.WithLabelValues(string(role)).Add(float64(delta))
}

// Propagated implements mesh.Meter.
func (m *meters) Propagated(rows int, took time.Duration) {
	m.rows.Add(float64(rows))
	m.propagation.Observe(took.Seconds())
}

package reconcile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// PromMeter counts passes in Prometheus metrics.
type PromMeter struct {
	rows   *prometheus.GaugeVec
	ops    *prometheus.CounterVec
	passes *prometheus.HistogramVec
}

// NewMeter registers the metrics of loops with reg.
func NewMeter(reg prometheus.Registerer) *PromMeter {
	m := &PromMeter{
		rows: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "clustermesh_reconcile_rows",
			Help: "Rows that the target holds."}, []string{"target"}),
		ops: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "clustermesh_reconcile_operations_total",
			Help: "Rows set in, deleted from or refused by the target."}, []string{"target", "operation"}),
		passes: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "clustermesh_reconcile_pass_duration_seconds",
			Help: "Time that one pass over the target took.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}, []string{"target"}),
	}
	reg.MustRegister(m.rows, m.ops, m.passes)
	return m
}

// Pass implements Meter.
func (m *PromMeter) Pass(name string, set, deleted, failed, held int, took time.Duration) {
	m.rows.WithLabelValues(name).Set(float64(held))
	for op, n := range map[string]int{"set": set, "delete": deleted, "failed": failed} {
		m.ops.WithLabelValues(name, op).Add(float64(n))
	}
	m.passes.WithLabelValues(name).Observe(took.Seconds())
}

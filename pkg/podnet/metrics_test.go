package podnet

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/ipam"
)

func TestMetrics(t *testing.T) {
	var none *Metrics
	none.request("ADD", 0, time.Second)
	none.addresses(ipam.Usage{})

	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.request("ADD", 0, time.Second)
	m.request("ADD", 11, time.Second)
	m.request("made up", 4, time.Second)
	for _, p := range prefixes("10.0.0.0/24", "fd00::/120").All() {
		m.addresses(ipam.Usage{Prefix: p, Used: 3, Capacity: ipam.Capacity(p)})
	}
	want := []string{
		"clustermesh_cni_request_duration_seconds verb=ADD 2",
		"clustermesh_cni_request_duration_seconds verb=other 1",
		"clustermesh_cni_requests_total code=0 verb=ADD 1",
		"clustermesh_cni_requests_total code=11 verb=ADD 1",
		"clustermesh_cni_requests_total code=4 verb=other 1",
		"clustermesh_ipam_addresses family=ipv4 state=capacity 253",
		"clustermesh_ipam_addresses family=ipv4 state=used 3",
		"clustermesh_ipam_addresses family=ipv6 state=capacity 254",
		"clustermesh_ipam_addresses family=ipv6 state=used 3",
	}
	if diff := cmp.Diff(want, gather(t, reg)); diff != "" {
		t.Error(diff)
	}
}

// gather prints counters and gauges with their value, histograms with their count.
func gather(t *testing.T, reg *prometheus.Registry) (lines []string) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			line := f.GetName()
			for _, l := range m.GetLabel() {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			lines = append(lines, fmt.Sprintf("%s %v", line, value))
		}
	}
	return lines
}

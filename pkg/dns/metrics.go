package dns

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clustermesh/clustermesh/pkg/dns/zone"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// dropped is CoreDNS's word for the zone of what it does not serve.
const dropped = "dropped"

// plugin is whose answers these would be in CoreDNS.
const plugin = "kubernetes"

// Meter counts under the names that CoreDNS uses, so that its dashboards serve
// here too.
type Meter struct {
	server, zone string

	requests   cached[prometheus.Counter]
	responses  cached[prometheus.Counter]
	dnssec     cached[prometheus.Counter]
	duration   cached[prometheus.Observer]
	inSize     cached[prometheus.Observer]
	outSize    cached[prometheus.Observer]
	programmed prometheus.Observer
	panics     prometheus.Counter
}

// cached are the series of a metric by number: looking one up by its labels
// costs as much as answering a query.
type cached[T any] struct {
	series []atomic.Pointer[T]
	make   func(labels ...string) T
}

func newCached[T any](n int, find func(labels ...string) T) cached[T] {
	return cached[T]{series: make([]atomic.Pointer[T], n), make: find}
}

// at is series i; labels are asked for once.
func (c *cached[T]) at(i int, labels func() []string) T {
	if p := c.series[i].Load(); p != nil {
		return *p
	}
	v := c.make(labels()...)
	c.series[i].Store(&v)
	return v
}

// monitored are the types that have a label of their own, as in CoreDNS.
var monitored = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypePTR, dns.TypeCNAME, dns.TypeMX,
	dns.TypeHTTPS, dns.TypeSVCB, dns.TypeDS, dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR}

// nTypes counts the monitored types, and others.
const nTypes = len(monitored) + 1

// nRcodes is how many codes a header can say.
const nRcodes = 16

// NewMeter registers the metrics of a server at an address that serves a zone.
func NewMeter(r prometheus.Registerer, addr, zoneName string) *Meter {
	m := &Meter{server: "dns://" + addr, zone: zoneName}
	sizes := []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_dns_requests_total",
		Help: "DNS requests, by zone, protocol, family and type."}, []string{"server", "zone", "view", "proto", "family", "type"})
	responses := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_dns_responses_total",
		Help: "DNS answers, by response code."}, []string{"server", "zone", "view", "rcode", "plugin"})
	do := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_dns_do_requests_total",
		Help: "DNS requests with the DO bit set."}, []string{"server", "zone", "view"})
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_dns_request_duration_seconds",
		Help: "Time that a request took.", Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16)}, []string{"server", "zone", "view"})
	in := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_dns_request_size_bytes",
		Help: "Size of requests.", Buckets: sizes}, []string{"server", "zone", "view", "proto"})
	out := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_dns_response_size_bytes",
		Help: "Size of answers.", Buckets: sizes}, []string{"server", "zone", "view", "proto"})
	programming := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_kubernetes_dns_programming_duration_seconds",
		Help: "Time from a change of endpoints to its being answered.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 20)}, []string{"service_kind"})
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_panics_total", Help: "Queries that met a bug."})
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "clustermesh_dns_build_info", Help: "Always 1; says which version runs.",
		ConstLabels: prometheus.Labels{"version": version.Version}})
	build.Set(1)
	r.MustRegister(requests, responses, do, duration, in, out, programming, m.panics, build)
	m.requests, m.responses = newCached(2*2*2*nTypes, requests.WithLabelValues), newCached(2*nRcodes, responses.WithLabelValues)
	m.dnssec, m.duration = newCached(2, do.WithLabelValues), newCached(2, duration.WithLabelValues)
	m.inSize, m.outSize = newCached(4, in.WithLabelValues), newCached(4, out.WithLabelValues)
	m.programmed = programming.WithLabelValues("headless_with_selector")
	return m
}

// exchange is a query and its answer, as they are counted.
type exchange struct {
	q       *zone.Query
	in, out int // octets
	header  []byte
	tcp     bool
	from    netip.Addr
	took    time.Duration
}

// count takes one exchange in.
func (m *Meter) count(e exchange) {
	zoneAt, zoneName, code := 0, m.zone, int(e.header[3]&0xf)
	if e.header[2]&0x04 == 0 { // not authoritative
		zoneAt, zoneName = 1, dropped
	}
	protoAt, proto := 0, "udp"
	if e.tcp {
		protoAt, proto = 1, "tcp"
	}
	familyAt, family := 0, "1"
	if e.from.Is6() && !e.from.Is4In6() {
		familyAt, family = 1, "2"
	}
	typeAt := slices.Index(monitored[:], e.q.Type)
	if typeAt < 0 {
		typeAt = nTypes - 1
	}
	m.requests.at(((zoneAt*2+protoAt)*2+familyAt)*nTypes+typeAt, func() []string {
		name := "other"
		if typeAt < len(monitored) {
			name = dns.TypeToString[e.q.Type]
		}
		return []string{m.server, zoneName, "", proto, family, name}
	}).Inc()
	m.responses.at(zoneAt*nRcodes+code, func() []string {
		answerer := plugin
		if zoneAt == 1 {
			answerer = ""
		}
		return []string{m.server, zoneName, "", dns.RcodeToString[code], answerer}
	}).Inc()
	byZone := func() []string { return []string{m.server, zoneName, ""} }
	byProto := func() []string { return []string{m.server, zoneName, "", proto} }
	if e.q.DNSSECOK {
		m.dnssec.at(zoneAt, byZone).Inc()
	}
	m.duration.at(zoneAt, byZone).Observe(e.took.Seconds())
	m.inSize.at(zoneAt*2+protoAt, byProto).Observe(float64(e.in))
	m.outSize.at(zoneAt*2+protoAt, byProto).Observe(float64(e.out))
}

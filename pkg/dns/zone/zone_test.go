package zone

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

func newZone(t testing.TB) *Zone {
	t.Helper()
	z, err := New(Config{Name: "clusterset.local", TTLSeconds: 5, UDPSize: 1232})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func addrs(list ...string) (a model.Addrs) {
	for _, s := range list {
		a = a.Add(netip.MustParseAddr(s))
	}
	return a
}

func key(name string) model.ServiceKey {
	ns, n, _ := strings.Cut(name, "/")
	return model.ServiceKey{Namespace: ns, Name: n}
}

// fixture is the content that the golden questions are about.
func fixture() []Change {
	const web = "http/tcp/80 metrics/tcp/9090"
	return []Change{
		{Key: key("shop/web"), Import: model.ServiceImport{IPs: addrs("10.99.0.1", "fd00:99::1"), Ports: web},
			Slices: []model.ImportSlice{{Service: "web", Cluster: "east", Endpoints: "10.2.0.7=web-0", Ports: web}}},
		{Key: key("shop/v4"), Import: model.ServiceImport{IPs: addrs("10.99.0.2"), Ports: "/tcp/80"}},
		{Key: key("shop/hello"), Import: model.ServiceImport{IPs: addrs("10.99.0.3"), Ports: "tcp/tcp/42 udp/udp/42"}},
		{Key: key("shop/pending"), Import: model.ServiceImport{Ports: web}},
		{Key: key("shop/portless"), Import: model.ServiceImport{IPs: addrs("10.99.0.4")}},
		{Key: key("shop/db"), Import: model.ServiceImport{Headless: true, Ports: "sql/tcp/5432"}, Slices: []model.ImportSlice{
			{Service: "db", Cluster: "east", Endpoints: "10.2.0.1=db-0 10.2.0.2=db-1", Ports: "sql/tcp/5432 repl/tcp/5433"},
			{Service: "db", Cluster: "east", Endpoints: "fd00:2::1=db-0 fd00:2::2=db-1", Ports: "sql/tcp/5432 repl/tcp/5433"},
			{Service: "db", Cluster: "west", Endpoints: "10.3.0.1=db-0", Ports: "sql/tcp/5432"},
		}},
		{Key: key("shop/pods"), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: "pods", Cluster: "east", Endpoints: "10.2.0.1 10.2.0.2", Ports: "/tcp/42 dns/udp/42"},
			{Service: "pods", Cluster: "east", Endpoints: "10.2.0.2 10.2.0.3", Ports: "/tcp/42 dns/udp/42"},
			{Service: "pods", Cluster: "east", Endpoints: "fd00:2::", Ports: "/tcp/42 dns/udp/42"},
		}},
		{Key: key("shop/bare"), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: "bare", Cluster: "east", Endpoints: "10.2.0.9=bare-0"}}},
		{Key: key("shop/down"), Import: model.ServiceImport{Headless: true, Ports: web}, Slices: []model.ImportSlice{
			{Service: "down", Cluster: "east", Ports: web}}},
		{Key: key("shop/alone"), Import: model.ServiceImport{Headless: true, Ports: web}},
		{Key: key("shop/twice"), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: "twice", Cluster: "east", Endpoints: "10.2.0.1=same 10.2.0.2=same", Ports: "a/tcp/1"},
			{Service: "twice", Cluster: "east", Endpoints: "10.2.0.1=same 10.2.0.3=other", Ports: "b/tcp/2"}}},
		{Key: key("shop/dotted"), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: "dotted", Cluster: "east.prod", Endpoints: "10.2.0.1=pod-0", Ports: "a/tcp/1"}}},
		{Key: key("shop/big"), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: "big", Cluster: "east", Endpoints: many(100), Ports: "a/tcp/1"}}},
		{Key: key(strings.Repeat("n", 63) + "/" + strings.Repeat("x", 63)), Import: model.ServiceImport{Headless: true}, Slices: []model.ImportSlice{
			{Service: strings.Repeat("x", 63), Cluster: strings.Repeat("c", 63), Endpoints: "10.2.0.1=" + strings.Repeat("h", 63) + " 10.2.0.2=ok",
				Ports: "a/tcp/1"}}},
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "10.4.%d.%d ", i/250, i%250+1)
	}
	return b.String()
}

// filled is a zone that holds the fixture.
func filled(t testing.TB) *Zone {
	z := newZone(t)
	z.SetNamespaces([]string{"shop", "empty", strings.Repeat("n", 63)}, nil)
	z.SetServices(fixture())
	z.SetServers([]netip.Addr{netip.MustParseAddr("10.99.0.53"), netip.MustParseAddr("fd00:99::53")})
	z.SetSerial(1700000000)
	z.SetSynced()
	return z
}

// ask packs a question as a client does, and unpacks the answer.
func ask(t testing.TB, z *Zone, m *dns.Msg, size int) *dns.Msg {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q Query
	if err := q.Parse(b); err != nil {
		t.Fatalf("%v: %v", m.Question, err)
	}
	got := z.Answer(nil, &q, size, 1)
	out := new(dns.Msg)
	if err := out.Unpack(got); err != nil {
		t.Fatalf("%v: answer can't be read: %v\n%x", m.Question, err, got)
	}
	if len(got) > size {
		t.Errorf("%v: answer has %d octets, asked for %d", m.Question, len(got), size)
	}
	if out.Id != m.Id || len(out.Question) != 1 || out.Question[0] != m.Question[0] {
		t.Errorf("answer to %v repeats %v", m.Question, out.Question)
	}
	return out
}

// TestAnswers asks each question of testdata/questions, and compares with
// testdata/answers, which is written as dig does.
func TestAnswers(t *testing.T) {
	file, err := os.ReadFile("testdata/questions")
	if err != nil {
		t.Fatal(err)
	}
	full, unsynced := filled(t), newZone(t)
	var out bytes.Buffer
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			fmt.Fprintln(&out, line)
			continue
		}
		f := strings.Fields(line)
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(f[0]), dns.StringToType[f[1]])
		m.Id = 1
		z, size := full, 512
		for _, opt := range f[2:] {
			switch opt {
			case "tcp":
				size = dns.MaxMsgSize
			case "edns":
				m.SetEdns0(1232, false)
				size = 1232
			case "edns1":
				m.SetEdns0(1232, true)
				m.IsEdns0().SetVersion(1)
			case "chaos":
				m.Question[0].Qclass = dns.ClassCHAOS
			case "unsynced":
				z = unsynced
			default:
				t.Fatalf("option %q is not known", opt)
			}
		}
		fmt.Fprintf(&out, "\n$ dig %s\n%s", line, Dig(ask(t, z, m, size)))
	}
	testutil.Golden(t, "answers", out.Bytes())
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	testutil.Eventually(t, time.Minute, what, ok)
}

// free is a loopback address that nobody listens on.
func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a resolver; stop tells it to end and waits for that.
func start(t *testing.T, s *kubetest.Server) (opt options, stop func()) {
	t.Helper()
	opt = options{config: config.Default(), kubeconfig: s.Kubeconfig, namespace: kubetest.Namespace, service: "clustermesh-dns", zone: "clusterset.local", ttl: 5,
		udpSize: 1232, listen: free(t), metrics: free(t), health: free(t), ready: free(t), lameduck: 300 * time.Millisecond}
	r, err := newResolver(t.Context(), opt, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.run(ctx); err != context.Canceled {
			t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return opt, stop
}

// get is the status and body of a page.
func get(addr, path string) (int, string) {
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func ask(t testing.TB, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	out, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("ask %s for %v: %v", addr, m.Question, err)
	}
	return out
}

// TestResolver runs the daemon against a real API server: SERVFAIL until all is
// known, then the truth, also while the API server is away, and after a restart
// (invariant D1).
func TestResolver(t *testing.T) {
	s := kubetest.Start(t)
	opt, stop := start(t, s)
	rcode := func(opt options, name string) int {
		return ask(t, "udp", opt.listen, new(dns.Msg).SetQuestion(name+".svc.clusterset.local.", dns.TypeA)).Rcode
	}
	eventually(t, "the rest is known", func() bool { _, body := get(opt.ready, "/ready"); return body == "serviceimports" })
	if code, _ := get(opt.ready, "/ready"); code != http.StatusServiceUnavailable || rcode(opt, "web.shop") != dns.RcodeServerFailure {
		t.Error("ready before ServiceImports can be read: ", code)
	}
	if code, body := get(opt.health, "/health"); code != http.StatusOK || body != "OK" {
		t.Error(code, body)
	}
	createAll(t, s.Client(), []string{"shop"}, fixture()[:6])
	eventually(t, "a name is known", func() bool { return rcode(opt, "web.shop") == dns.RcodeSuccess })
	if code, body := get(opt.ready, "/ready"); code != http.StatusOK || body != "OK" {
		t.Error(code, body)
	}
	if _, body := get(opt.metrics, "/metrics"); !strings.Contains(body, `coredns_dns_responses_total{plugin="kubernetes",rcode="SERVFAIL",server="dns://`+opt.listen) {
		t.Error(body)
	}
	second, stopSecond := start(t, s)
	eventually(t, "a second resolver knows it", func() bool { return rcode(second, "db.shop") == dns.RcodeSuccess })
	s.Stop()
	time.Sleep(time.Second)
	if rcode(opt, "db.shop") != dns.RcodeSuccess || rcode(second, "web.shop") != dns.RcodeSuccess {
		t.Error("an API server that is away costs names")
	}
	third, _ := start(t, s)
	if got := rcode(third, "web.shop"); got != dns.RcodeServerFailure {
		t.Error("a resolver that knows nothing says ", got)
	}
	stopSecond()
	s.Resume()
	eventually(t, "it knows after all", func() bool { return rcode(third, "web.shop") == dns.RcodeSuccess })
	lameduck(t, opt, stop)
}

// lameduck: a resolver that was told to end answers for a while.
func lameduck(t *testing.T, opt options, stop func()) {
	t.Helper()
	ended := make(chan struct{})
	go func() { stop(); close(ended) }()
	time.Sleep(opt.lameduck / 3)
	out := ask(t, "udp", opt.listen, new(dns.Msg).SetQuestion("web.shop.svc.clusterset.local.", dns.TypeA))
	if len(out.Answer) != 1 {
		t.Error(out)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if code, _ := get(opt.health, "/health"); code != 0 {
		t.Error("it still serves")
	}
}

func TestOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("cluster: {name: west, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.96.0.0/16]}\nkubernetes: {host: 192.0.2.1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("POD_NAMESPACE", "clustermesh-system")
	t.Setenv("POD_IPS", "10.1.0.7,fd00:1::7")
	for name, c := range map[string]struct{ args, want string }{
		"defaults":         {"", ""},
		"not a flag":       {"x", `argument "x"`},
		"no namespace":     {"--namespace=", "--namespace must be given"},
		"addresses":        {"--addresses=10.0.0.1,x", `"x" is no address`},
		"negative":         {"--lameduck=-1s", "--lameduck"},
		"unknown":          {"--zones=x", "flag provided but not defined"},
		"no configuration": {"--config=/nowhere", "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			opt, err := parseOptions(append([]string{"--config=" + file}, strings.Fields(c.args)...), &out)
			if c.want == "" && (err != nil || len(opt.own) != 2 || opt.listen != ":53" || opt.ttl != 5) {
				t.Error(opt, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for name, edit := range map[string]func(*options){"zone": func(o *options) { o.zone = "a..b" }, "TTL": func(o *options) { o.ttl = 1 << 33 }, "UDP size": func(o *options) { o.udpSize = 65536 + 1232 }} {
		opt, err := parseOptions([]string{"--config=" + file}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		edit(&opt)
		if _, err := newResolver(t.Context(), opt, io.Discard); err == nil || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

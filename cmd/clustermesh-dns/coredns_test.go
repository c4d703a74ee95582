package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/clustermesh/clustermesh/pkg/kube/kubetest"
)

const corefile = `clusterset.local:%s {
	bind 127.0.0.1
	errors
	kubernetes clusterset.local {
		kubeconfig %s
		multicluster clusterset.local
	}
}
`

// different are the questions that CoreDNS answers otherwise, and why we don't
// follow. A question that is answered alike must not be here.
var different = map[string]string{
	"clusterset.local NS":                              "CoreDNS names the Services that select its pod, of which it finds none here",
	"ClusterSet.LOCAL NS edns":                         "the same",
	"clusterset.local TXT":                             "CoreDNS denies that the zone's own name exists",
	"shop.svc.clusterset.local TXT":                    "CoreDNS denies that a namespace exists which it knows of",
	"dns-version.clusterset.local A":                   "CoreDNS denies that a name exists which has a record of another type",
	"dns.clusterset.local A":                           "CoreDNS denies that a name exists below which there is one (RFC 8020)",
	"other.clusterset.local SOA":                       "CoreDNS does not deny names that don't exist to who asks for SOA",
	"pods.shop.svc.clusterset.local SRV tcp":           "CoreDNS counts an endpoint twice in weights if it stands in two slices",
	"_dns._udp.pods.shop.svc.clusterset.local SRV tcp": "the same",
	"web.shop.svc.clusterset.local A edns1":            "CoreDNS does not repeat the DO bit (RFC 3225) where it refuses the version",
	strings.Repeat("x", 63) + "." + strings.Repeat("n", 63) + ".svc.clusterset.local SRV tcp": "CoreDNS sends a name that is too long for any client to read",
	"pod-0.east.prod.dotted.shop.svc.clusterset.local A":                                      "CoreDNS knows no clusters whose name has a dot, though it gives such names away in SRV records",
}

// TestLikeCoreDNS asks a real CoreDNS and us, with the same API server, what
// pkg/dns/zone/testdata/questions asks.
func TestLikeCoreDNS(t *testing.T) {
	program := findCoreDNS(t)
	s := kubetest.Start(t)
	createAll(t, s.Client(), []string{"shop", "empty", strings.Repeat("n", 63)}, fixture())
	opt, _ := start(t, s)
	addr := startCoreDNS(t, program, s)
	known := new(dns.Msg).SetQuestion("web.shop.svc.clusterset.local.", dns.TypeA)
	for _, a := range []string{opt.listen, addr} {
		eventually(t, a+" knows names", func() bool {
			out, err := dns.Exchange(known.Copy(), a)
			return err == nil && len(out.Answer) == 1
		})
	}
	file, err := os.ReadFile("../../pkg/dns/zone/testdata/questions")
	if err != nil {
		t.Fatal(err)
	}
	asked, reasons := 0, 0
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		if line == "" || line[0] == '#' || slices.Contains(f, "unsynced") {
			continue
		}
		asked++
		network := "udp"
		m := new(dns.Msg).SetQuestion(dns.Fqdn(f[0]), dns.StringToType[f[1]])
		for _, o := range f[2:] {
			switch o {
			case "tcp":
				network = "tcp"
			case "edns":
				m.SetEdns0(1232, false)
			case "edns1":
				m.SetEdns0(1232, true)
				m.IsEdns0().SetVersion(1)
			case "chaos":
				m.Question[0].Qclass = dns.ClassCHAOS
			}
		}
		ours, theirs := answer(network, opt.listen, m), answer(network, addr, m)
		reason, differs := different[line]
		if differs {
			reasons++
		}
		if (ours == theirs) == differs {
			t.Errorf("%s (reason to differ: %q)\nours\n%s\nCoreDNS\n%s", line, reason, ours, theirs)
		}
	}
	if asked < 100 || reasons != len(different) {
		t.Errorf("%d questions; %d of %d reasons are about one", asked, reasons, len(different))
	}
}

// answer is what a server says, or that it can't be understood.
func answer(network, addr string, m *dns.Msg) string {
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	out, _, err := c.Exchange(m, addr)
	if err != nil {
		return fmt.Sprint("no answer: ", err)
	}
	return shown(out)
}

// shown writes what must be the same: code, flags, and records without
// their order. Who truncates may choose what stays.
func shown(m *dns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s aa=%v tc=%v rd=%v ra=%v cd=%v\n", dns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, m.RecursionDesired, m.RecursionAvailable, m.CheckingDisabled)
	for _, rr := range m.Extra {
		rr.Header().Name = strings.ToLower(rr.Header().Name)
	}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			switch rr := rr.(type) {
			case *dns.OPT:
				lines = append(lines, fmt.Sprintf("OPT %d %v", rr.Version(), rr.Do()))
				continue
			case *dns.SOA:
				rr.Serial = 0
			case *dns.SRV:
				rr.Target = strings.ToLower(rr.Target)
			}
			lines = append(lines, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		slices.Sort(lines)
		if m.Truncated && len(lines) > 0 {
			lines = []string{fmt.Sprint(len(lines), " records")}
		}
		for _, l := range lines {
			fmt.Fprintf(&b, "%d %s\n", i, l)
		}
	}
	return b.String()
}

// findCoreDNS looks for the program that test/coredns builds.
func findCoreDNS(t *testing.T) string {
	t.Helper()
	path := cmp.Or(os.Getenv("COREDNS"), "../../bin/coredns")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	const missing = "needs CoreDNS: make bin/coredns, or set COREDNS to the program"
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// startCoreDNS runs it until the test ends.
func startCoreDNS(t *testing.T, program string, s *kubetest.Server) (addr string) {
	t.Helper()
	addr = free(t)
	file := filepath.Join(t.TempDir(), "Corefile")
	if err := os.WriteFile(file, fmt.Appendf(nil, corefile, addr[strings.LastIndexByte(addr, ':')+1:], s.Kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-conf", file)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return addr
}

package lab

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"testing"
)

func TestPKI(t *testing.T) {
	p := pki{t.TempDir()}
	if err := p.ensureCA("test-ca"); err != nil {
		t.Fatal(err)
	}
	id := identity{name: "n1", user: "system:node:n1", groups: []string{"system:nodes"}, ips: []netip.Addr{netip.MustParseAddr("172.18.1.1")}}
	issue := func() string {
		if err := p.ensure(id); err != nil {
			t.Fatal(err)
		}
		data, err := p.read("n1.crt")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if first, second := issue(), issue(); first != second {
		t.Error("ensure issued a second certificate")
	}
	pair, err := tls.LoadX509KeyPair(p.file("n1.crt"), p.file("n1.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	ca, err := p.read("ca.crt")
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no authority", err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "172.18.1.1", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if got := pair.Leaf.Subject.String(); got != "CN=system:node:n1,O=system:nodes" {
		t.Errorf("subject = %s", got)
	}
}

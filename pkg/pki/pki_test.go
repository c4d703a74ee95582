package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

var today = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestIdentify: who may be who (invariant M2).
func TestIdentify(t *testing.T) {
	pair := must[Pair](t)
	east, west, north := pair(NewCA("east", today)), pair(NewCA("west", today)), pair(NewCA("north", today))
	trust := &Trust{
		Server: pair(IssueServer(east, "east", today)),
		Agents: []*x509.Certificate{east.Cert},
		Peers:  map[string][]*x509.Certificate{"west": {west.Cert}, "north": {north.Cert}},
	}
	custom := func(ca Pair, name pkix.Name, edit func(*x509.Certificate)) Pair {
		c := leaf(today, name, x509.ExtKeyUsageClientAuth)
		if edit != nil {
			edit(c)
		}
		return pair(sign(c, &ca))
	}
	sub := custom(west, pkix.Name{Organization: []string{OrgPeer}, CommonName: "west"}, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
	})
	tests := []struct {
		name  string
		chain []*x509.Certificate
		at    time.Time
		want  Identity
		err   string
	}{
		{"peer", []*x509.Certificate{pair(IssuePeer(west, "west", today)).Cert}, today, Identity{RolePeer, "west"}, ""},
		{"agent", []*x509.Certificate{pair(IssueAgent(east, today)).Cert}, today, Identity{RoleAgent, "agent"}, ""},
		{"none", nil, today, Identity{}, "no certificate"},
		{"peer signed by another peer", []*x509.Certificate{pair(IssuePeer(north, "west", today)).Cert}, today, Identity{}, "unknown authority"},
		{"agent signed by a peer", []*x509.Certificate{pair(IssueAgent(west, today)).Cert}, today, Identity{}, "unknown authority"},
		{"peer signed by us", []*x509.Certificate{pair(IssuePeer(east, "west", today)).Cert}, today, Identity{}, "unknown authority"},
		{"we ourselves as a peer", []*x509.Certificate{pair(IssuePeer(east, "east", today)).Cert}, today, Identity{}, "no peer named"},
		{"unknown peer", []*x509.Certificate{pair(IssuePeer(west, "south", today)).Cert}, today, Identity{}, "no peer named"},
		{"peer without a name", []*x509.Certificate{pair(IssuePeer(west, "", today)).Cert}, today, Identity{}, "no peer named"},
		{"server certificate", []*x509.Certificate{trust.Server.Cert}, today, Identity{}, "no role"},
		{"server usage", []*x509.Certificate{custom(west, pkix.Name{Organization: []string{OrgPeer}, CommonName: "west"},
			func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }).Cert}, today, Identity{}, "incompatible key usage"},
		{"two roles", []*x509.Certificate{custom(west, pkix.Name{Organization: []string{OrgPeer, OrgAgent}, CommonName: "west"}, nil).Cert}, today, Identity{}, "no role"},
		{"agent of another name", []*x509.Certificate{custom(east, pkix.Name{Organization: []string{OrgAgent}, CommonName: "west"}, nil).Cert}, today, Identity{}, "no known role"},
		{"authority itself", []*x509.Certificate{west.Cert}, today, Identity{}, "not of a client"},
		{"intermediate", []*x509.Certificate{pair(IssuePeer(sub, "west", today)).Cert, sub.Cert}, today, Identity{}, "unknown authority"},
		{"expired", []*x509.Certificate{pair(IssuePeer(west, "west", today)).Cert}, today.Add(LeafLife + time.Hour), Identity{}, "expired"},
		{"not yet valid", []*x509.Certificate{pair(IssuePeer(west, "west", today)).Cert}, today.Add(-2 * time.Hour), Identity{}, "not yet valid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := trust.Identify(tt.chain, tt.at)
			if got != tt.want {
				t.Errorf("identity %v, want %v", got, tt.want)
			}
			checkErr(t, err, tt.err)
		})
	}
}

func checkErr(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case err == nil && want != "":
		t.Errorf("no error, want %q", want)
	case err != nil && (want == "" || !strings.Contains(err.Error(), want)):
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestPEM(t *testing.T) {
	pair := must[Pair](t)
	ca, other := pair(NewCA("east", today)), pair(NewCA("west", today))
	key := must[[]byte](t)(ca.KeyPEM())
	otherKey := must[[]byte](t)(other.KeyPEM())
	leafPEM := pair(IssueAgent(ca, today)).CertPEM()

	if got := pair(ParsePair(ca.CertPEM(), key)); !got.Cert.Equal(ca.Cert) || !got.Key.Equal(ca.Key) {
		t.Error("pair differs after encoding and parsing")
	}
	both := EncodeBundle([]*x509.Certificate{ca.Cert, other.Cert})
	if got, err := ParseBundle(both); err != nil || len(got) != 2 || !got[1].Equal(other.Cert) {
		t.Errorf("bundle of two: %v, %v", got, err)
	}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"key of another", second(ParsePair(ca.CertPEM(), otherKey)), "does not belong"},
		{"no key", second(ParsePair(ca.CertPEM(), nil)), "no PEM block"},
		{"certificate as key", second(ParsePair(ca.CertPEM(), leafPEM)), `is "CERTIFICATE"`},
		{"two certificates", second(ParsePair(both, key)), "2 certificates"},
		{"empty bundle", second(ParseBundle([]byte(" \n"))), "empty"},
		{"text", second(ParseBundle([]byte("hello"))), `begins with "hello"`},
		{"key in bundle", second(ParseBundle(append(ca.CertPEM(), key...))), `certificate 2: PEM block is "PRIVATE KEY"`},
		{"leaf in bundle", second(ParseBundle(append(ca.CertPEM(), leafPEM...))), "certificate 2"},
		{"text behind", second(ParseBundle(append(ca.CertPEM(), "x"...))), "certificate 2"},
	} {
		t.Run(tt.name, func(t *testing.T) { checkErr(t, tt.err, tt.want) })
	}
}

func second[T any](_ T, err error) error { return err }

// FuzzParseBundle: a Peer's bundle is pasted by people. Nothing in it may panic
// (invariant W2), and what is accepted is the same when it is written and read again.
func FuzzParseBundle(f *testing.F) {
	for _, name := range []string{"east", "west"} {
		ca, err := NewCA(name, today)
		if err != nil {
			f.Fatal(err)
		}
		agent, err := IssueAgent(ca, today)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ca.CertPEM())
		f.Add(agent.CertPEM())
		f.Add(append(ca.CertPEM(), ca.CertPEM()...))
		f.Add(ca.CertPEM()[:200])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseBundle(data)
		if err != nil {
			if certs != nil {
				t.Errorf("%d certificates with error %v", len(certs), err)
			}
			return
		}
		again, err := ParseBundle(EncodeBundle(certs))
		if err != nil || !slices.EqualFunc(certs, again, (*x509.Certificate).Equal) {
			t.Errorf("read again: %d certificates, then %d, %v", len(certs), len(again), err)
		}
	})
}

func TestRotation(t *testing.T) {
	ca := must[Pair](t)(NewCA("east", today))
	c := must[Pair](t)(IssueAgent(ca, today)).Cert
	for _, tt := range []struct {
		name string
		at   time.Time
		want bool
	}{
		{"new", today, false},
		{"before", RotateAt(c).Add(-time.Second), false},
		{"due", RotateAt(c), true},
		{"clock set back", today.Add(-24 * time.Hour), true},
	} {
		if got := NeedsRotation(c, tt.at); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	late := today.Add(CALife - 24*time.Hour)
	if c := must[Pair](t)(IssueAgent(ca, late)).Cert; c.NotAfter.After(ca.Cert.NotAfter) {
		t.Errorf("leaf lives until %s, its authority until %s", c.NotAfter, ca.Cert.NotAfter)
	}
}

// TestHandshake runs both configurations against each other, with the trust
// replaced between handshakes as rotation does.
func TestHandshake(t *testing.T) {
	pair := must[Pair](t)
	east, west, fake := pair(NewCA("east", today)), pair(NewCA("west", today)), pair(NewCA("east", today))
	full := &Trust{Server: pair(IssueServer(east, "east", today)), Agents: []*x509.Certificate{east.Cert},
		Peers: map[string][]*x509.Certificate{"west": {west.Cert}}}
	revoked := &Trust{Server: full.Server, Agents: full.Agents}
	impostor := &Trust{Server: pair(IssueServer(fake, "east", today)), Peers: full.Peers}
	misnamed := &Trust{Server: pair(IssueServer(east, "north", today)), Peers: full.Peers}
	peer := pair(IssuePeer(west, "west", today))
	for _, tt := range []struct {
		name           string
		trust          *Trust
		client         func() Pair
		server, cliErr string
	}{
		{"good", full, func() Pair { return peer }, "", ""},
		{"revoked", revoked, func() Pair { return peer }, "no peer named", ""},
		{"no trust yet", nil, func() Pair { return peer }, "no certificate yet", "internal error"},
		{"no client certificate", full, nil, "didn't provide a certificate", ""},
		{"server of another authority", impostor, func() Pair { return peer }, "bad certificate", "unknown authority"},
		{"server of another name", misnamed, func() Pair { return peer }, "bad certificate", "valid for north"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := func() time.Time { return today }
			cc := ClientConfig("east", []*x509.Certificate{east.Cert}, tt.client)
			cc.Time = at
			a, b := net.Pipe()
			srv := make(chan error, 1)
			go func() {
				s := tls.Server(a, ServerConfig(func() *Trust { return tt.trust }, at))
				srv <- s.Handshake()
				_ = s.CloseWrite()
				_ = a.Close()
			}()
			checkErr(t, tls.Client(b, cc).Handshake(), tt.cliErr)
			go drain(b)
			checkErr(t, <-srv, tt.server)
		})
	}
}

// drain reads until the other side is done, as net.Pipe has no buffer.
func drain(c net.Conn) {
	buf := make([]byte, 512)
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

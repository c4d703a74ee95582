package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Role says what a client of the mesh API is.
type Role string

// The roles.
const (
	RolePeer  Role = "peer"  // another cluster's API server
	RoleAgent Role = "agent" // one of our own agents
)

// Identity is who a client has proven to be. Name is the cluster of a peer.
type Identity struct {
	Role Role
	Name string
}

func (i Identity) String() string { return string(i.Role) + " " + i.Name }

// Trust is whom a mesh API server believes. A Trust is never changed once it is
// in use; a new one takes its place.
type Trust struct {
	Server Pair                           // what we show
	Agents []*x509.Certificate            // who may sign agents: our own authority
	Peers  map[string][]*x509.Certificate // who may sign each peer: that Peer's own bundle
}

// Identify tells whose certificate heads chain. A name is believed only from
// the authorities trusted for exactly that name, and intermediate certificates
// are not accepted, so no authority can make a client of another peer.
func (t *Trust) Identify(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("client shows no certificate")
	}
	c := chain[0]
	id, roots, err := t.claim(c)
	if err != nil {
		return Identity{}, err
	}
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	_, err = c.Verify(x509.VerifyOptions{
		Roots:       pool,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Identity{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return id, nil
}

// claim is who a certificate says it is, and whose signature would prove it.
func (t *Trust) claim(c *x509.Certificate) (Identity, []*x509.Certificate, error) {
	if c.IsCA {
		return Identity{}, nil, fmt.Errorf("certificate of %.100q is one of an authority, not of a client", c.Subject.String())
	}
	if len(c.Subject.Organization) != 1 {
		return Identity{}, nil, fmt.Errorf("certificate of %.100q names no role", c.Subject.String())
	}
	name := c.Subject.CommonName
	switch org := c.Subject.Organization[0]; {
	case org == OrgAgent && name == AgentName:
		return Identity{RoleAgent, name}, t.Agents, nil
	case org == OrgPeer && len(t.Peers[name]) > 0:
		return Identity{RolePeer, name}, t.Peers[name], nil
	case org == OrgPeer:
		return Identity{}, nil, fmt.Errorf("there is no peer named %.100q", name)
	}
	return Identity{}, nil, fmt.Errorf("certificate of %.100q names no known role", c.Subject.String())
}

// ServerConfig is the TLS configuration of a mesh API server. trust is asked at
// every handshake, so new peers and rotated certificates need no restart; while
// it returns nil every client is refused. Tickets are off: a resumed session
// would save a signature and skip nothing else.
func ServerConfig(trust func() *Trust, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection does the rest
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			t := trust()
			if t == nil || t.Server.Cert == nil {
				return nil, errors.New("mesh API server has no certificate yet")
			}
			c := t.Server.TLS()
			return &c, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			t := trust()
			if t == nil {
				return errors.New("mesh API server trusts nobody yet")
			}
			_, err := t.Identify(s.PeerCertificates, now())
			return err
		},
	}
}

// ClientConfig is the TLS configuration for the mesh API server of cluster:
// bundle is all it trusts. own is asked at every handshake; it may be nil for a
// probe, which shows no certificate.
//
// The server is checked here and not by crypto/tls, because gRPC and clientv3
// put the address that they dial in the place of ServerName; a server proves
// its cluster, at whatever address it is.
func ClientConfig(cluster string, bundle []*x509.Certificate, own func() Pair) *tls.Config {
	pool := x509.NewCertPool()
	for _, c := range bundle {
		pool.AddCert(c)
	}
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName(cluster),
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
	}
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		return verifyServer(s.PeerCertificates, cluster, pool, now(conf))
	}
	if own != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			p := own()
			if p.Cert == nil {
				return &tls.Certificate{}, nil
			}
			c := p.TLS()
			return &c, nil
		}
	}
	return conf
}

func verifyServer(chain []*x509.Certificate, cluster string, roots *x509.CertPool, at time.Time) error {
	if len(chain) == 0 {
		return fmt.Errorf("mesh API server of cluster %q shows no certificate", cluster)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName:     ServerName(cluster),
		Roots:       roots,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("mesh API server of cluster %q: %w", cluster, err)
	}
	return nil
}

// now is the time by which certificates are checked.
func now(conf *tls.Config) time.Time {
	if conf.Time != nil {
		return conf.Time()
	}
	return time.Now()
}

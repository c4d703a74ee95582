// Package pki makes and checks the certificates of the mesh. Every cluster has
// a certificate authority of its own, whose key never leaves it: it signs the
// certificate that its mesh API server shows, the one that the cluster shows to
// its peers, and the one of its agents. Who may be who is decided here too; the
// package does no I/O and knows nothing of Kubernetes.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// What the subjects of our certificates say. A role stands in the organisation,
// a name in the common name.
const (
	OrgCA    = "clustermesh:ca"
	OrgPeer  = "clustermesh:peer"
	OrgAgent = "clustermesh:agent"
	// AgentName is the common name of every agent: agents of a cluster read
	// the same rows, so one certificate serves all.
	AgentName = "agent"
)

// Lifetimes. Leaves are rotated by their own cluster after two thirds of life.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	LeafLife = 90 * 24 * time.Hour
	// skew is how far a certificate is dated back, for clocks that differ.
	skew = time.Hour
)

// Pair is a certificate with its private key.
type Pair struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// ServerName is the name that the mesh API server of a cluster proves to have.
func ServerName(cluster string) string { return cluster + ".mesh.clustermesh.io" }

// NewCA makes the certificate authority of a cluster. It can sign leaves only,
// never another authority.
func NewCA(cluster string, now time.Time) (Pair, error) {
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{OrgCA}, CommonName: cluster},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(CALife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	p, err := sign(tmpl, nil)
	if err != nil {
		return Pair{}, fmt.Errorf("make certificate authority of cluster %q: %w", cluster, err)
	}
	return p, nil
}

// IssueServer makes the certificate of the cluster's mesh API server.
func IssueServer(ca Pair, cluster string, now time.Time) (Pair, error) {
	tmpl := leaf(now, pkix.Name{CommonName: ServerName(cluster)}, x509.ExtKeyUsageServerAuth)
	tmpl.DNSNames = []string{ServerName(cluster)}
	return issue(ca, tmpl)
}

// IssuePeer makes the certificate that the cluster shows to its peers.
func IssuePeer(ca Pair, cluster string, now time.Time) (Pair, error) {
	return issue(ca, leaf(now, pkix.Name{Organization: []string{OrgPeer}, CommonName: cluster}, x509.ExtKeyUsageClientAuth))
}

// IssueAgent makes the certificate of the cluster's agents.
func IssueAgent(ca Pair, now time.Time) (Pair, error) {
	return issue(ca, leaf(now, pkix.Name{Organization: []string{OrgAgent}, CommonName: AgentName}, x509.ExtKeyUsageClientAuth))
}

func leaf(now time.Time, subject pkix.Name, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		Subject:               subject,
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(LeafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
	}
}

func issue(ca Pair, tmpl *x509.Certificate) (Pair, error) {
	if ca.Cert == nil || ca.Key == nil {
		return Pair{}, fmt.Errorf("issue certificate of %q: there is no certificate authority", tmpl.Subject)
	}
	if tmpl.NotAfter.After(ca.Cert.NotAfter) {
		tmpl.NotAfter = ca.Cert.NotAfter // a leaf that outlives its issuer fails without a warning
	}
	p, err := sign(tmpl, &ca)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate of %q: %w", tmpl.Subject, err)
	}
	return p, nil
}

// sign makes a new key and a certificate for it, signed by ca or by itself.
func sign(tmpl *x509.Certificate, ca *Pair) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("generate key: %w", err)
	}
	tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Pair{}, fmt.Errorf("draw serial number: %w", err)
	}
	if ca == nil {
		ca = &Pair{Cert: tmpl, Key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Pair{}, fmt.Errorf("parse certificate: %w", err)
	}
	return Pair{Cert: cert, Key: key}, nil
}

// RotateAt is when a certificate should be replaced: after two thirds of its life.
func RotateAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// NeedsRotation tells whether a certificate should be replaced now.
func NeedsRotation(c *x509.Certificate, now time.Time) bool {
	return !now.Before(RotateAt(c)) || now.Before(c.NotBefore)
}

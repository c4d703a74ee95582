package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	blockCert = "CERTIFICATE"
	blockKey  = "PRIVATE KEY" // PKCS #8 (RFC 5958)
)

// CertPEM is the certificate in PEM.
func (p Pair) CertPEM() []byte { return EncodeBundle([]*x509.Certificate{p.Cert}) }

// KeyPEM is the private key in PEM. Never log it.
func (p Pair) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// TLS is the pair in the form crypto/tls takes.
func (p Pair) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
}

// ParsePair reads a certificate and its key, and checks that they belong together.
func ParsePair(certPEM, keyPEM []byte) (Pair, error) {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return Pair{}, err
	}
	if len(certs) != 1 {
		return Pair{}, fmt.Errorf("parse certificate: %d certificates where one is expected", len(certs))
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return Pair{}, errors.New("parse private key: no PEM block")
	}
	if block.Type != blockKey {
		return Pair{}, fmt.Errorf("parse private key: PEM block is %q, not %q", block.Type, blockKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Pair{}, fmt.Errorf("parse private key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return Pair{}, fmt.Errorf("parse private key: it is a %T, not an ECDSA key", k)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return Pair{}, fmt.Errorf("parse private key: it does not belong to the certificate of %q", certs[0].Subject)
	}
	return Pair{Cert: certs[0], Key: key}, nil
}

// ParseBundle reads the certificates of one or more certificate authorities:
// several while an authority is being replaced.
func ParseBundle(data []byte) ([]*x509.Certificate, error) {
	certs, err := parseCerts(data)
	if err != nil {
		return nil, err
	}
	for i, c := range certs {
		if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, fmt.Errorf("parse bundle: certificate %d (%q) is not one of a certificate authority", i+1, c.Subject)
		}
	}
	return certs, nil
}

// EncodeBundle is the reverse of ParseBundle.
func EncodeBundle(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: c.Raw}))
	}
	return b.Bytes()
}

// parseCerts reads all of data, strictly: what is not a certificate is an error,
// because a bundle that lost a part should not look like a good one.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := bytes.TrimSpace(data)
	for len(rest) > 0 {
		n := len(certs) + 1
		block, tail := pem.Decode(rest)
		if block == nil {
			return nil, fmt.Errorf("parse certificate %d: no PEM block, the text begins with %.20q", n, rest)
		}
		if block.Type != blockCert {
			return nil, fmt.Errorf("parse certificate %d: PEM block is %q, not %q", n, block.Type, blockCert)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", n, err)
		}
		certs = append(certs, c)
		rest = bytes.TrimSpace(tail)
	}
	if len(certs) == 0 {
		return nil, errors.New("parse certificate: it is empty")
	}
	return certs, nil
}

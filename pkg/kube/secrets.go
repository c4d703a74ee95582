package kube

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/state"
)

// The Secrets that the API server makes at first start.
const (
	SecretCA    = "clustermesh-ca"        // this cluster's mesh CA
	SecretAgent = "clustermesh-agent-tls" // client certificate of agents, and the CA
	SecretPeer  = "clustermesh-peer-tls"  // client certificate towards peers
)

// keyCA is the key of CA certificates in a Secret.
const keyCA = "ca.crt"

// TLSSecret is a Secret of type kubernetes.io/tls, all PEM. It prints nothing
// of its key.
type TLSSecret struct {
	Cert, Key, CA   string
	ResourceVersion string
}

// String implements fmt.Stringer.
func (s TLSSecret) String() string { return "TLS secret at version " + s.ResourceVersion }

// GoString implements fmt.GoStringer.
func (s TLSSecret) GoString() string { return s.String() }

// RunSecret keeps table equal to the Secret called name in our namespace, under
// that key, until ctx ends.
func (c *Client) RunSecret(ctx context.Context, log *slog.Logger, name string, table *state.Table[string, TLSSecret]) error {
	selector := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	return follow(ctx, log, c.CoreV1().Secrets(c.Namespace), selector,
		&rowStore[*corev1.Secret, string, TLSSecret]{name: "secret " + name, table: table,
			rows: func(s *corev1.Secret) map[string]TLSSecret { return one(s.Name, tlsSecret(s)) }})
}

func tlsSecret(s *corev1.Secret) TLSSecret {
	return TLSSecret{Cert: string(s.Data[corev1.TLSCertKey]), Key: string(s.Data[corev1.TLSPrivateKeyKey]),
		CA: string(s.Data[keyCA]), ResourceVersion: s.ResourceVersion}
}

// GetSecret reads a Secret of our namespace; ok is false if there is none.
func (c *Client) GetSecret(ctx context.Context, name string) (s TLSSecret, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o, err := c.CoreV1().Secrets(c.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return TLSSecret{}, false, nil
	}
	if err != nil {
		return TLSSecret{}, false, fmt.Errorf("get secret %s/%s: %w", c.Namespace, name, err)
	}
	return tlsSecret(o), true, nil
}

// PutSecret creates the Secret if s has no ResourceVersion, and else changes
// the one that was read at that version. done is false if somebody else was
// faster: read it again.
func (c *Client) PutSecret(ctx context.Context, name string, s TLSSecret) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.Namespace, ResourceVersion: s.ResourceVersion,
			Labels: map[string]string{"app.kubernetes.io/name": "clustermesh", "app.kubernetes.io/managed-by": "clustermesh-apiserver"}},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: []byte(s.Cert), corev1.TLSPrivateKeyKey: []byte(s.Key)},
	}
	if s.CA != "" {
		o.Data[keyCA] = []byte(s.CA)
	}
	if s.ResourceVersion == "" {
		_, err = c.CoreV1().Secrets(c.Namespace).Create(ctx, o, metav1.CreateOptions{})
	} else {
		_, err = c.CoreV1().Secrets(c.Namespace).Update(ctx, o, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err) && s.ResourceVersion != "":
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write secret %s/%s: %w", c.Namespace, name, err)
	}
	return true, nil
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"os/exec"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/test/bench/peers"
)

// On a node of the lab.
const (
	kubeconfig = "/etc/kubernetes/admin.kubeconfig"
	namespace  = "clustermesh-system"
	meshAPI    = "127.0.0.1:7473" // the API server is on the host's network
)

// cluster is the node's Kubernetes, and what its mesh API server has made there.
type cluster struct {
	*kube.Client
	name string
}

func openCluster(name string) (*cluster, error) {
	conf, err := kube.Kubeconfig(kubeconfig, "")
	if err != nil {
		return nil, err
	}
	client, err := kube.New(conf, "bench", namespace)
	return &cluster{client, name}, err
}

// agentTLS is what an agent of this cluster shows and believes.
func (c *cluster) agentTLS(ctx context.Context) (*tls.Config, error) {
	s, ok, err := c.GetSecret(ctx, kube.SecretAgent)
	if err != nil || !ok {
		return nil, fmt.Errorf("secret %s: there %v, %w", kube.SecretAgent, ok, err)
	}
	pair, err := pki.ParsePair([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		return nil, err
	}
	bundle, err := pki.ParseBundle([]byte(s.CA))
	if err != nil {
		return nil, err
	}
	return pki.ClientConfig(c.name, bundle, func() pki.Pair { return pair }), nil
}

// startPeers starts the process that plays peers, and makes their Peer objects.
func (c *cluster) startPeers(ctx context.Context, count int, shape peers.Shape, dir string) (*peers.Source, error) {
	ca, ok, err := c.GetSecret(ctx, kube.SecretCA)
	if err != nil || !ok {
		return nil, fmt.Errorf("secret %s: there %v, %w", kube.SecretCA, ok, err)
	}
	progress("%d peers with %d rows each start", count, shape.Rows())
	src, err := peers.Start(ctx, exec.Command(own, verbPeers),
		peers.Spec{Shape: shape, Peers: count, Cluster: c.name, CA: ca.Cert, Dir: dir})
	if err != nil {
		return nil, err
	}
	for i, p := range src.Peers {
		if _, err := c.Peers.Create(ctx, p.Object(i), metav1.CreateOptions{}); err != nil {
			_ = src.Close()
			return nil, fmt.Errorf("create Peer %s: %w", p.Name, err)
		}
	}
	return src, nil
}

// Package kube is the only place that talks to the Kubernetes API: it turns
// objects into rows of tables, and writes back status, secrets and events. It
// decides nothing, and an API server that is away costs no row: tables keep
// what they had until a full list says otherwise.
package kube

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// Where a pod finds the credentials of its service account.
const (
	tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	caFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// PeerClient reads and writes Peer objects.
type PeerClient = gentype.ClientWithList[*v1alpha1.Peer, *v1alpha1.PeerList]

// PoolClient reads and writes LoadBalancerPool objects.
type PoolClient = gentype.ClientWithList[*v1alpha1.LoadBalancerPool, *v1alpha1.LoadBalancerPoolList]

// Client speaks to one cluster's API server. Namespace is that of our own objects.
type Client struct {
	kubernetes.Interface
	Peers     *PeerClient
	Pools     *PoolClient
	Namespace string
	Config    *rest.Config
}

// InCluster is the configuration of a pod that reaches the API server at
// host:port with its service account's token, which is read again as it is
// renewed. No Service and no environment variable is needed.
func InCluster(host string, port int) (*rest.Config, error) {
	if host == "" {
		return nil, errors.New("kubernetes.host is empty; set it to an address of the Kubernetes API server that works without any Service")
	}
	if _, err := os.Stat(tokenFile); err != nil {
		return nil, fmt.Errorf("read service account token: %w; run in a pod with a service account, or give --kubeconfig", err)
	}
	return &rest.Config{
		Host:            "https://" + net.JoinHostPort(host, strconv.Itoa(port)),
		BearerTokenFile: tokenFile,
		TLSClientConfig: rest.TLSClientConfig{CAFile: caFile},
	}, nil
}

// Kubeconfig is the configuration in a kubeconfig file; an empty context means
// the current one.
func Kubeconfig(path, context string) (*rest.Config, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}
	over := &clientcmd.ConfigOverrides{CurrentContext: context}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, over).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s, context %q: %w", path, context, err)
	}
	return cfg, nil
}

// New makes a client. It does not connect yet.
func New(cfg *rest.Config, component, namespace string) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = component + "/" + version.Version
	cfg.QPS, cfg.Burst = 50, 100 // the API server's own fairness rules are the real limit
	ours, codec, err := newOwnClient(cfg)
	if err != nil {
		return nil, err
	}
	peers := gentype.NewClientWithList(v1alpha1.Peers.Resource, ours, codec, "",
		func() *v1alpha1.Peer { return &v1alpha1.Peer{} },
		func() *v1alpha1.PeerList { return &v1alpha1.PeerList{} })
	pools := gentype.NewClientWithList(v1alpha1.Pools.Resource, ours, codec, "",
		func() *v1alpha1.LoadBalancerPool { return &v1alpha1.LoadBalancerPool{} },
		func() *v1alpha1.LoadBalancerPoolList { return &v1alpha1.LoadBalancerPoolList{} })
	core := rest.CopyConfig(cfg)
	core.ContentType = runtime.ContentTypeProtobuf // a third of JSON's cost for large node lists
	core.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	set, err := kubernetes.NewForConfig(core)
	if err != nil {
		return nil, fmt.Errorf("make client for %s: %w", cfg.Host, err)
	}
	return &Client{Interface: set, Peers: peers, Pools: pools, Namespace: namespace, Config: cfg}, nil
}

// newOwnClient is a client for the objects of our own API group.
func newOwnClient(cfg *rest.Config) (*rest.RESTClient, runtime.ParameterCodec, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, nil, fmt.Errorf("register %v: %w", v1alpha1.GroupVersion, err)
	}
	return newRESTClient(cfg, v1alpha1.GroupVersion, scheme)
}

// newRESTClient is a client for the custom resources of a version.
func newRESTClient(cfg *rest.Config, version schema.GroupVersion, scheme *runtime.Scheme) (*rest.RESTClient, runtime.ParameterCodec, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion, cfg.APIPath = &version, "/apis"
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.Timeout = 0
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("make client for %s: %w", cfg.Host, err)
	}
	return c, runtime.NewParameterCodec(scheme), nil
}

// requestTimeout bounds a single write or read outside of watches.
const requestTimeout = 15 * time.Second

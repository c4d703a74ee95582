package lab

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig is the administrator's kubeconfig for use on this machine, with one
// context, named like the cluster.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir(), "kubeconfig") }

// Kubeconfig holds all clusters of the lab, one context each, for use on this machine.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.Dir(), "kubeconfig") }

// APIServer is the address of the API server inside the fabric.
func (c *Cluster) APIServer() string {
	return "https://" + c.apiAddress()
}

func (c *Cluster) apiAddress() string {
	return net.JoinHostPort(c.Nodes[0].Addrs.Primary().String(), "6443")
}

func (c *Cluster) hostAPIServer() string {
	return "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port))
}

// addContext adds the identity's access to the cluster as a context.
func (c *Cluster) addContext(cfg *api.Config, server, identity string) error {
	p := c.pki()
	ca, err := p.read("ca.crt")
	if err != nil {
		return err
	}
	cert, err := p.read(identity + ".crt")
	if err != nil {
		return err
	}
	key, err := p.read(identity + ".key")
	if err != nil {
		return err
	}
	user := c.Name + "-" + identity
	cfg.Clusters[c.Name] = &api.Cluster{Server: server, CertificateAuthorityData: ca}
	cfg.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	cfg.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: user}
	if cfg.CurrentContext == "" {
		cfg.CurrentContext = c.Name
	}
	return nil
}

func (c *Cluster) kubeconfig(server, identity string) ([]byte, error) {
	cfg := api.NewConfig()
	if err := c.addContext(cfg, server, identity); err != nil {
		return nil, err
	}
	return clientcmd.Write(*cfg)
}

func (c *Cluster) writeKubeconfig() error {
	data, err := c.kubeconfig(c.hostAPIServer(), "admin")
	if err != nil {
		return err
	}
	return writeFile(c.Kubeconfig(), data)
}

func (l *Lab) writeKubeconfig() error {
	cfg := api.NewConfig()
	for _, c := range l.Clusters {
		if err := c.addContext(cfg, c.hostAPIServer(), "admin"); err != nil {
			return err
		}
	}
	data, err := clientcmd.Write(*cfg)
	if err != nil {
		return err
	}
	return writeFile(l.Kubeconfig(), data)
}

// RESTConfig is for clients of the cluster in this process.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig of %s: %w", c.Name, err)
	}
	// A lab's API server is ours alone; client-side limits would only slow tests.
	cfg.QPS, cfg.Burst = 1000, 1000
	return cfg, nil
}

// Client is a Kubernetes client with every right.
func (c *Cluster) Client() (kubernetes.Interface, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

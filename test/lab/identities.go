package lab

import (
	"net/netip"
	"path/filepath"
)

func (c *Cluster) pki() pki { return pki{filepath.Join(c.dir(), "pki")} }

func (c *Cluster) dir() string { return filepath.Join(c.lab.Dir(), c.Name) }

// ensurePKI issues every certificate of the control plane.
func (c *Cluster) ensurePKI() error {
	p := c.pki()
	if err := p.ensureCA(c.Name + "-ca"); err != nil {
		return err
	}
	ips := append(c.Nodes[0].Addrs.List(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
	for _, cidr := range c.Config().ServiceCIDRs {
		ips = append(ips, cidr.Addr().Next())
	}
	for _, id := range []identity{
		{name: "apiserver", user: "kube-apiserver", ips: ips, dns: []string{"localhost", "kubernetes",
			"kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		{name: "front-proxy", user: "front-proxy"},
		{name: "admin", user: "admin", groups: []string{"system:masters"}},
		{name: "controller-manager", user: "system:kube-controller-manager"},
		{name: "scheduler", user: "system:kube-scheduler"},
		{name: "kube-proxy", user: "system:kube-proxy"},
	} {
		if err := p.ensure(id); err != nil {
			return err
		}
	}
	return nil
}

// ensureNodePKI issues the node's kubelet certificate unless there is one.
func (c *Cluster) ensureNodePKI(n *Node) error {
	return c.pki().ensure(n.identity())
}

// issueNodePKI issues a new one, for new addresses.
func (c *Cluster) issueNodePKI(n *Node) error {
	return c.pki().issue(n.identity())
}

// identity is the kubelet's: a client's towards the API server, a server's for
// logs and exec.
func (n *Node) identity() identity {
	return identity{
		name:   n.Name,
		user:   "system:node:" + n.Name,
		groups: []string{"system:nodes"},
		dns:    []string{n.Name},
		ips:    n.Addrs.List(),
	}
}

package lab

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AddNode makes one more node and waits until it is registered.
func (c *Cluster) AddNode(ctx context.Context) (*Node, error) {
	last := 0
	for _, n := range c.Nodes {
		last = max(last, n.Index)
	}
	if last >= maxNodes {
		return nil, fmt.Errorf("add node to %s: it has had %d, the most there can be", c.Name, last)
	}
	n := c.newNode(last + 1)
	c.Nodes = append(c.Nodes, n)
	// Saved first: whatever comes after can be repaired by name.
	if err := c.lab.save(true); err != nil {
		return nil, err
	}
	if err := n.Start(ctx); err != nil {
		return nil, err
	}
	return n, c.waitRegistered(ctx)
}

// RemoveNode switches the node off, deletes its API object and its disk.
func (c *Cluster) RemoveNode(ctx context.Context, n *Node) error {
	if n.isControlPlane() {
		return fmt.Errorf("remove node %s: the control plane runs on it", n.Name)
	}
	if err := n.Stop(ctx); err != nil {
		return err
	}
	client, err := c.Client()
	if err != nil {
		return err
	}
	err = client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete node %s: %w", n.Name, err)
	}
	if err := os.RemoveAll(n.dir()); err != nil {
		return fmt.Errorf("delete disk of %s: %w", n.Name, err)
	}
	c.Nodes = slices.DeleteFunc(c.Nodes, func(other *Node) bool { return other == n })
	return c.lab.save(true)
}

// Readdress gives the node the addresses of place n (1..99) in its cluster's
// plan, as if its machine had moved: kubelet starts again with them.
func (n *Node) Readdress(ctx context.Context, place int) error {
	c := n.cluster
	if n.isControlPlane() {
		return fmt.Errorf("re-address node %s: certificates and kubeconfigs name the control plane's address", n.Name)
	}
	addrs := c.lab.cfg.nodeAddrs(c.Index, place)
	for _, other := range c.Nodes {
		if other != n && other.Addrs == addrs {
			return fmt.Errorf("re-address node %s to %s: %s has that", n.Name, addrs, other.Name)
		}
	}
	for _, daemon := range []string{"kubelet", "kube-proxy"} {
		if len(n.PIDs(daemon)) == 0 {
			continue
		}
		if err := n.Kill(ctx, daemon); err != nil {
			return err
		}
	}
	if err := n.moveTo(addrs); err != nil {
		return fmt.Errorf("re-address node %s: %w", n.Name, err)
	}
	if err := c.lab.save(true); err != nil {
		return err
	}
	return n.Start(ctx)
}

// moveTo changes the addresses. The default route goes with the last address of
// its family, so it is set again.
func (n *Node) moveTo(addrs Addrs) error {
	err := inNetns(n.Netns(), func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, old := range n.Addrs.List() {
			addr, err := netlink.ParseAddr(n.cluster.lab.cfg.onLink(old).String())
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(eth0, addr); err != nil {
				return fmt.Errorf("delete address %s: %w", old, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.Addrs = addrs
	if err := n.configureNet(); err != nil {
		return err
	}
	return n.cluster.issueNodePKI(n)
}

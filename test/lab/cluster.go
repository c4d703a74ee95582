package lab

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// start brings up what of the cluster does not run: nodes, then side by side
// the control plane and the container runtimes with their images, then kubelets.
// A kubelet comes after both: without images it asks a registry and sits in DNS
// time-outs, without an API server it backs off.
func (c *Cluster) start(ctx context.Context) error {
	p := c.lab.progress
	if err := c.ensurePKI(); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := c.ensureNodePKI(n); err != nil {
			return err
		}
		if err := n.powerOn(ctx); err != nil {
			return err
		}
	}
	p.step("%s: namespaces of %d nodes", c.Name, len(c.Nodes))
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.startControlPlane(gctx) })
	for _, n := range c.Nodes {
		group.Go(func() error { return n.startRuntime(gctx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	p.step("%s: control plane, and images on every node", c.Name)
	for _, n := range c.Nodes {
		if err := n.startKubelet(); err != nil {
			return err
		}
	}
	if err := c.waitRegistered(ctx); err != nil {
		return err
	}
	p.step("%s: nodes registered", c.Name)
	return nil
}

// waitRegistered waits until every running node is in the API with its pod CIDR.
func (c *Cluster) waitRegistered(ctx context.Context) error {
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		what := fmt.Sprintf("node %s to register (see %s)", n.Name, n.Log("kubelet"))
		err := poll(ctx, 2*time.Minute, what, func() (bool, error) {
			cidrs, err := n.PodCIDRs(ctx)
			return err == nil && (len(cidrs) > 0 || c.lab.cfg.NoNodeCIDRs), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Package lab boots real Kubernetes clusters on one Linux machine: every node is
// a set of namespaces (network, mount, UTS) and a cgroup with its own containerd
// and kubelet; the control plane runs on the first node of each cluster.
//
// It owns everything named after a lab: network namespaces <lab>-*, the cgroup
// clustermesh-lab-<lab>, and the directory <Dir>/<lab>. It never changes the
// machine's own network, and no route leads from a lab to it: the API servers
// are reached through forwarders on the loopback address.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Lab is a set of clusters on one fabric.
type Lab struct {
	Clusters []*Cluster

	cfg      Config
	parts    Parts
	cgroups  cgroups
	progress *progress
	mu       sync.Mutex // guards the state file
}

// Cluster is one Kubernetes cluster.
type Cluster struct {
	Name string
	// Index is the cluster's place, 1 the first; addresses come from it.
	Index int
	Nodes []*Node
	// Port is where the API server is reached on the machine's loopback address.
	Port int

	lab *Lab
}

// Node is one machine of a cluster.
type Node struct {
	Name  string
	Index int
	Addrs Addrs

	cluster *Cluster
}

// Up makes the lab cfg describes, or repairs and reuses it when it is there. A
// lab that an interrupted Up left half-made is made anew.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := checkMachine(cfg.Dir); err != nil {
		return nil, err
	}
	unlock, err := lockLab(ctx, cfg.Dir, cfg.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := newProgress(cfg.Out)
	if err := allowWatches(p); err != nil {
		return nil, err
	}
	parts, err := buildParts(ctx, p)
	if err != nil {
		return nil, err
	}
	l, err := prepare(ctx, cfg, p)
	if err != nil {
		return nil, err
	}
	l.parts = parts
	if err := l.start(ctx); err != nil {
		return nil, fmt.Errorf("start lab %s: %w", cfg.Name, err)
	}
	p.step("lab %s is up", cfg.Name)
	return l, nil
}

// prepare gives the lab to start: the one that is there if it was complete and
// is meant to be the same, else a new one on clean ground.
func prepare(ctx context.Context, cfg Config, p *progress) (*Lab, error) {
	old, err := load(cfg.Dir, cfg.Name)
	switch {
	case err == nil && old.complete && !cfg.Fresh:
		if diff := old.lab.cfg.differs(cfg); diff != "" {
			return nil, fmt.Errorf("start lab %s: it exists with another %s; take it down first", cfg.Name, diff)
		}
		old.lab.cfg.Images = cfg.Images
		old.lab.progress = p
		return old.lab, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		p.step("the state of lab %s cannot be read (%v): making it anew", cfg.Name, err)
	}
	groups, err := findCgroups()
	if err != nil {
		return nil, err
	}
	if err := clean(ctx, cfg.Dir, cfg.Name, groups); err != nil {
		return nil, err
	}
	l := newLab(cfg, groups)
	l.progress = p
	return l, l.save(false)
}

func newLab(cfg Config, groups cgroups) *Lab {
	l := &Lab{cfg: cfg, cgroups: groups}
	for i, cc := range cfg.Clusters {
		c := &Cluster{Name: cc.Name, Index: i + 1, lab: l}
		for n := 1; n <= cc.Nodes; n++ {
			c.Nodes = append(c.Nodes, c.newNode(n))
		}
		l.Clusters = append(l.Clusters, c)
	}
	return l
}

func (c *Cluster) newNode(n int) *Node {
	return &Node{
		Name:    fmt.Sprintf("%s-n%d", c.Name, n),
		Index:   n,
		Addrs:   c.lab.cfg.nodeAddrs(c.Index, n),
		cluster: c,
	}
}

// start brings up whatever of the lab does not run.
func (l *Lab) start(ctx context.Context) error {
	if err := l.cgroups.make(l.cfg.cgroupName()); err != nil {
		return err
	}
	if err := l.ensureFabric(); err != nil {
		return err
	}
	if err := l.buildOwn(ctx); err != nil {
		return err
	}
	if err := l.writeOwnImages(); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	for _, c := range l.Clusters {
		group.Go(func() error {
			if err := c.start(gctx); err != nil {
				return fmt.Errorf("start cluster %s: %w", c.Name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := l.writeKubeconfig(); err != nil {
		return err
	}
	if l.cfg.CNI == Bridge {
		if err := l.installBridges(ctx); err != nil {
			return err
		}
		for _, c := range l.Clusters {
			if err := c.WaitReady(ctx, 2*time.Minute); err != nil {
				return err
			}
			l.progress.step("%s: nodes ready with the bridge plugin", c.Name)
		}
	}
	return l.save(true)
}

// Open gives the lab of that name that Up made before.
func Open(dir, name string) (*Lab, error) {
	cfg := Config{Name: name, Dir: dir}.withDefaults()
	s, err := load(cfg.Dir, cfg.Name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open lab %s: there is none in %s", cfg.Name, cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", cfg.Name, err)
	}
	s.lab.progress = newProgress(cfg.Out)
	return s.lab, nil
}

// Name is the lab's.
func (l *Lab) Name() string { return l.cfg.Name }

// Dir holds the lab's files: kubeconfigs, node disks, logs.
func (l *Lab) Dir() string { return filepath.Join(l.cfg.Dir, l.cfg.Name) }

// BinDir holds kubectl, ctr and the other programs of the lab.
func (l *Lab) BinDir() string { return l.parts.Dir }

// Cluster gives a cluster by name.
func (l *Lab) Cluster(name string) (*Cluster, error) {
	for _, c := range l.Clusters {
		if c.Name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("find cluster %q: lab %s has none of that name", name, l.cfg.Name)
}

// Node gives a node by name, such as west-n1, or by number.
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.Nodes {
		if n.Name == name || fmt.Sprint(n.Index) == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("find node %q: cluster %s has none of that name", name, c.Name)
}

// Config is what the lab was made of.
func (l *Lab) Config() Config { return l.cfg }

// Config is what the cluster was made of.
func (c *Cluster) Config() ClusterConfig { return c.lab.cfg.Clusters[c.Index-1] }

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"
)

// state is lab.json: what Up made, for the next process that asks.
type state struct {
	Config   Config         `json:"config"`
	Parts    Parts          `json:"parts"`
	Clusters []clusterState `json:"clusters"`
	// Complete is set once everything ran; a lab without it is made anew.
	Complete bool `json:"complete"`
}

type clusterState struct {
	Port  int         `json:"port"`
	Nodes []nodeState `json:"nodes"`
}

type nodeState struct {
	Index int   `json:"index"`
	Addrs Addrs `json:"addrs"`
}

type loaded struct {
	lab      *Lab
	complete bool
}

func (l *Lab) save(complete bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := state{Config: l.cfg, Parts: l.parts, Complete: complete}
	for _, c := range l.Clusters {
		cs := clusterState{Port: c.Port}
		for _, n := range c.Nodes {
			cs.Nodes = append(cs.Nodes, nodeState{n.Index, n.Addrs})
		}
		s.Clusters = append(s.Clusters, cs)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab state: %w", err)
	}
	return writeFile(filepath.Join(l.Dir(), "lab.json"), data)
}

func load(dir, name string) (loaded, error) {
	data, err := os.ReadFile(filepath.Join(dir, name, "lab.json"))
	if err != nil {
		return loaded{}, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return loaded{}, fmt.Errorf("decode lab state: %w", err)
	}
	if len(s.Clusters) != len(s.Config.Clusters) {
		return loaded{}, errors.New("decode lab state: it lacks clusters")
	}
	groups, err := findCgroups()
	if err != nil {
		return loaded{}, err
	}
	s.Config.Dir = dir
	l := newLab(s.Config.withDefaults(), groups)
	l.parts = s.Parts
	for i, cs := range s.Clusters {
		c := l.Clusters[i]
		c.Port = cs.Port
		c.Nodes = nil
		for _, ns := range cs.Nodes {
			n := c.newNode(ns.Index)
			n.Addrs = ns.Addrs
			c.Nodes = append(c.Nodes, n)
		}
	}
	return loaded{l, s.Complete}, nil
}

// differs names the first setting in which an existing lab is not the wanted one.
func (c Config) differs(wanted Config) string {
	type setting struct {
		name string
		a, b any
	}
	for _, s := range []setting{
		{"set of clusters", c.Clusters, wanted.Clusters},
		{"fabric", c.Fabric, wanted.Fabric},
		{"stack", c.Stack, wanted.Stack},
		{"kube-proxy mode", c.KubeProxy, wanted.KubeProxy},
		{"CNI", c.CNI, wanted.CNI},
		{"bridge-across", c.BridgeAcross, wanted.BridgeAcross},
		{"allocation of node CIDRs", c.NoNodeCIDRs, wanted.NoNodeCIDRs},
	} {
		if !reflect.DeepEqual(s.a, s.b) {
			return s.name
		}
	}
	return ""
}

// lockLab keeps two processes from building or tearing down one lab at once. The
// lock dies with its process.
func lockLab(ctx context.Context, dir, name string) (unlock func(), err error) {
	var f *os.File
	what := "another process to be done with lab " + name
	err = poll(ctx, 15*time.Minute, what, func() (bool, error) {
		f, err = tryLock(filepath.Join(dir, name))
		return f != nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("lock lab %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// tryLock gives the directory, locked, or nil while another process has it.
func tryLock(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // taken down just now
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && sameFile(f, root) {
		return f, nil
	}
	f.Close()
	if err == nil || errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// writeFile writes path whole or not at all, and its directory if need be.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}

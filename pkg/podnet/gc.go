package podnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/podnet/journal"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Run looks for dead attachments until ctx ends. Runtimes forget a DEL (it was
// asked for while the agent was down, the node was reset), and containerd never
// sends GC.
func (s *Server) Run(ctx context.Context) error {
	t := time.NewTicker(s.opt.GCInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		key := status.Key{Component: "cni", Object: "garbage collection"}
		if err := s.collect(ctx); err != nil && ctx.Err() == nil {
			s.complain(key.Component, key.Object, err, "it is retried")
		} else {
			s.opt.Board.Clear(key)
		}
	}
}

// collect frees the attachments whose veth is gone and those whose ADD or DEL
// got stuck half-way, and deletes veths of ours that nothing is known of.
func (s *Server) collect(ctx context.Context) error {
	veths, err := listVeths(s.host)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range s.snapshot() {
		age := s.opt.Now().Sub(e.Created) // negative where the clock was set back
		if 0 <= age && age < s.opt.Grace || e.Ready && veths[e.Pod.HostIf] {
			continue
		}
		errs = append(errs, s.collectOne(ctx, e))
	}
	s.removeOrphans(veths)
	s.report()
	return errors.Join(errs...)
}

func (s *Server) snapshot() []journal.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]journal.Entry, 0, len(s.entries))
	for _, e := range s.entries {
		out = append(out, e)
	}
	return out
}

// collectOne frees e if it is still what it was when it looked dead.
func (s *Server) collectOne(ctx context.Context, e journal.Entry) error {
	unlock, err := s.keys.lock(ctx, e.Pod.Key)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	now, known := s.entries[e.Pod.Key]
	s.mu.Unlock()
	if !known || now != e {
		return nil
	}
	if err := s.detach(e.Pod); err != nil {
		return fmt.Errorf("free %s of pod %s/%s: %w", e.Pod.HostIf, e.Pod.Namespace, e.Pod.Name, err)
	}
	s.opt.Log.Info("dead attachment freed", "interface", e.Pod.HostIf, "namespace", e.Pod.Namespace, "pod", e.Pod.Name, "addresses", e.Pod.IPs.All())
	return nil
}

// removeOrphans deletes veths that no entry names. Every veth is in entries
// before it is made, so what was listed and is not there belongs to nobody.
func (s *Server) removeOrphans(veths map[string]bool) {
	for name := range veths {
		s.mu.Lock()
		orphan := !s.hostIfTaken(name)
		if orphan {
			s.removing[name] = true
		}
		s.mu.Unlock()
		if !orphan {
			continue
		}
		if err := deleteVeth(s.host, name); err != nil {
			s.complain("cni", name, err, "delete it with: ip link delete "+name)
		} else {
			s.opt.Log.Info("veth of no known pod deleted", "interface", name)
		}
		s.mu.Lock()
		delete(s.removing, name)
		s.mu.Unlock()
	}
}

// gcVerb frees every attachment of the network that the runtime does not list.
func (s *Server) gcVerb(ctx context.Context, req *request) error {
	if req.conf.ValidAttachments == nil {
		return refuse(api.CodeConfig, "the runtime must list the attachments to keep", "GC got no cni.dev/valid-attachments")
	}
	valid := map[model.PodKey]bool{}
	for _, a := range req.conf.ValidAttachments {
		valid[model.PodKey{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	var errs []error
	for _, e := range s.snapshot() {
		if e.Network == req.conf.Name && e.Ready && !valid[e.Pod.Key] {
			errs = append(errs, s.collectOne(ctx, e))
		}
	}
	return errors.Join(errs...)
}

package podnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/journal"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Restore takes over what an earlier agent left. Attachments whose veth is
// there become rows as they are; nothing of them is touched. Freed are those
// whose veth is gone (a reboot, a deleted namespace) and those whose ADD never
// got an answer. It must be called once, before serving, and waits until
// another agent has let go of the journal.
func (s *Server) Restore(ctx context.Context) error {
	j, err := journal.Open(ctx, s.opt.Journal)
	if err != nil {
		return err
	}
	entries, problems, err := j.Load()
	if err != nil {
		return errors.Join(err, j.Close())
	}
	veths, err := listVeths(s.host)
	if err != nil {
		return errors.Join(err, j.Close())
	}
	s.journal = j
	for _, p := range problems {
		s.complain("journal", p.File, fmt.Errorf("file moved aside: %w", p.Err), "restart the pods of this node that have lost their network, then delete the file")
	}
	dead := s.adopt(entries, veths)
	for _, pod := range dead {
		if err := s.detach(pod); err != nil {
			s.complain("cni", pod.HostIf, err, "it is retried")
		}
	}
	s.removeOrphans(veths)
	s.mu.Lock()
	s.restored = true
	s.mu.Unlock()
	s.report()
	s.opt.Log.Info("pods restored", "pods", len(entries)-len(dead), "freed", len(dead), "unreadable", len(problems))
	return nil
}

// adopt registers all entries, publishes the rows of those that live, and
// returns the others.
func (s *Server) adopt(entries []journal.Entry, veths map[string]bool) (dead []model.Pod) {
	rows := map[model.PodKey]model.Pod{}
	var conflicts []error
	s.mu.Lock()
	for _, e := range entries {
		if err := s.alloc.Restore(e.Pod.Key, e.Pod.IPs); err != nil {
			conflicts = append(conflicts, fmt.Errorf("pod %s/%s: %w", e.Pod.Namespace, e.Pod.Name, err))
			dead = append(dead, e.Pod)
			continue
		}
		s.entries[e.Pod.Key] = e
		if e.Ready && veths[e.Pod.HostIf] {
			rows[e.Pod.Key] = e.Pod
		} else {
			dead = append(dead, e.Pod)
		}
	}
	s.mu.Unlock()
	s.opt.Pods.Replace(SourceName, rows)
	if err := errors.Join(conflicts...); err != nil {
		s.complain("journal", "conflict", err, "restart these pods")
	}
	return dead
}

func (s *Server) complain(component, object string, err error, remedy string) {
	if s.opt.Board.Set(status.Key{Component: component, Object: object}, status.Degraded, err.Error(), remedy) {
		s.opt.Log.Warn("pod bookkeeping trouble", "component", component, "object", object, "error", err)
	}
}

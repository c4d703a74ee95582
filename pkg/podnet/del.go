package podnet

import (
	"context"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// lockTimeout bounds the wait for another verb on the same attachment.
const lockTimeout = 60 * time.Second

// del detaches a pod. It is idempotent, needs no network namespace, and goes
// on when the runtime has lost patience.
func (s *Server) del(ctx context.Context, req *request) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
	defer cancel()
	unlock, err := s.keys.lock(ctx, req.key)
	if err != nil {
		return refuse(api.CodeTryAgain, "", "wait for another request for this attachment: %v", err)
	}
	defer unlock()
	defer s.report()
	return s.detach(s.podOf(req.key))
}

// podOf returns the attachment; if it is unknown, what it would be called.
func (s *Server) podOf(key model.PodKey) model.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.entries[key]; ok {
		return e.Pod
	}
	return model.Pod{Key: key, HostIf: HostIf(key)}
}

// detach removes everything of an attachment, from whatever state. The veth
// goes before the address is free, and the journal knows until then, so that
// no address is given to a second pod while the first still has it. The caller
// holds the key.
func (s *Server) detach(pod model.Pod) error {
	s.opt.Pods.Update(SourceName, nil, []model.PodKey{pod.Key})
	if err := s.failpoint("delete veth"); err != nil {
		return err
	}
	if err := deleteVeth(s.host, pod.HostIf); err != nil {
		return err
	}
	if err := s.failpoint("delete journal"); err != nil {
		return err
	}
	if err := s.journal.Delete(pod.HostIf); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alloc.Release(pod.Key)
	delete(s.entries, pod.Key)
	return nil
}

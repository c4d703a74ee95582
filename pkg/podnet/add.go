package podnet

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netns"

	"github.com/clustermesh/clustermesh/pkg/ipam"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/podnet/journal"
)

// add attaches a pod, or changes nothing.
func (s *Server) add(ctx context.Context, req *request) (body []byte, err error) {
	if err := checkAdd(req); err != nil {
		return nil, err
	}
	unlock, err := s.keys.lock(ctx, req.key)
	if err != nil {
		return nil, refuse(api.CodeTryAgain, "", "wait for another request for this attachment: %v", err)
	}
	defer unlock()
	ns, err := s.openPodNS(req.netns, req.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	entry, err := s.reserve(req)
	if err != nil {
		return nil, err
	}
	committed := false
	defer func() { // also when it panics
		if !committed {
			err = errors.Join(err, s.undo(ctx, entry))
		}
		s.report()
	}()
	mtu := s.opt.MTU()
	if err = s.attach(ctx, entry, ns, mtu); err != nil {
		return nil, err
	}
	body, err = encodeResult(entry.Pod, req, mtu)
	committed = err == nil
	return body, err
}

func checkAdd(req *request) error {
	if req.conf.RawPrevResult != nil {
		return refuse(api.CodeConfig, "put it first in the list of plugins", "clustermesh-cni got a prevResult")
	}
	if t := req.conf.IPAM.Type; t != "" {
		return refuse(api.CodeConfig, "remove the ipam section: clustermesh-cni assigns addresses itself", "ipam.type is %q", t)
	}
	return nil
}

// reserve registers the attachment and picks its addresses. What an
// interrupted ADD left under the same key is removed first.
func (s *Server) reserve(req *request) (journal.Entry, error) {
	s.mu.Lock()
	old, exists := s.entries[req.key]
	s.mu.Unlock()
	if exists && old.Ready {
		return journal.Entry{}, refuse(api.CodeEnvironment, "call DEL first, or choose another CNI_IFNAME",
			"container %s has an interface %s already", req.ContainerID, req.IfName)
	}
	if exists {
		if err := s.detach(old.Pod); err != nil {
			return journal.Entry{}, fmt.Errorf("remove what an earlier ADD left: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := journal.Entry{
		Pod: model.Pod{Key: req.key, Namespace: req.namespace(), Name: req.podName(), HostIf: HostIf(req.key), MAC: podMAC(req.key),
			HostPorts: model.JoinHostPorts(req.ports)},
		Network: req.conf.Name, Created: s.opt.Now(),
	}
	if s.removing[e.Pod.HostIf] || s.hostIfTaken(e.Pod.HostIf) {
		return journal.Entry{}, refuse(api.CodeTryAgain, "", "interface name %s is in use", e.Pod.HostIf)
	}
	ips, err := s.alloc.Allocate(req.key)
	if err != nil {
		return journal.Entry{}, allocError(err)
	}
	e.Pod.IPs = ips
	s.entries[req.key] = e
	return e, nil
}

// hostIfTaken must be called with mu held.
func (s *Server) hostIfTaken(name string) bool {
	for _, e := range s.entries {
		if e.Pod.HostIf == name {
			return true
		}
	}
	return false
}

func allocError(err error) error {
	e := &Error{Code: api.CodeTryAgain, Msg: "allocate address", Err: err}
	var full *ipam.ExhaustedError
	if errors.As(err, &full) {
		e.Remedy = "delete pods of this node, or give nodes a larger pod CIDR"
	}
	return e
}

// attach does the work of ADD in the order that a crash at any point can be
// cleaned up after: the journal knows first, the answer comes last.
func (s *Server) attach(ctx context.Context, e journal.Entry, ns netns.NsHandle, mtu MTU) error {
	ready := e
	ready.Ready = true
	steps := []struct {
		name string
		do   func() error
	}{
		{"journal", func() error { return s.journal.Put(e) }},
		{"veth", func() error { return s.createVeth(e.Pod, ns, mtu) }},
		{"host end", func() error { return s.setUpHost(e.Pod) }},
		{"pod end", func() error { return setUpPod(e.Pod, ns, mtu) }},
		{"row", func() error { s.setRow(e.Pod); return nil }},
		{"sync", func() error { return s.sync(ctx, e.Pod) }},
		{"commit", func() error { return s.commit(ready) }},
		// A runtime that has given up will not ask again for this attachment.
		{"answer", func() error { return context.Cause(ctx) }},
	}
	for _, step := range steps {
		if err := s.failpoint(step.name); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	return s.failpoint("end")
}

func (s *Server) setRow(pod model.Pod) {
	s.opt.Pods.Update(SourceName, map[model.PodKey]model.Pod{pod.Key: pod}, nil)
}

func (s *Server) sync(ctx context.Context, pod model.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := s.opt.Sync(ctx, pod); err != nil {
		return &Error{Code: api.CodeTryAgain, Msg: "program the node for the pod", Remedy: "see clustermesh status", Err: err}
	}
	return nil
}

func (s *Server) commit(e journal.Entry) error {
	if err := s.journal.Put(e); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[e.Pod.Key] = e
	return nil
}

// undo takes back a failed ADD. If that fails as well, the entry stays as one
// that is not ready, and the garbage collection tries again.
func (s *Server) undo(ctx context.Context, e journal.Entry) error {
	s.mu.Lock()
	committed := s.entries[e.Pod.Key].Ready
	s.entries[e.Pod.Key] = e
	s.mu.Unlock()
	if committed {
		if err := s.journal.Put(e); err != nil {
			s.opt.Log.ErrorContext(ctx, "failed ADD stays complete in the journal", "interface", e.Pod.HostIf, "error", err)
		}
	}
	if err := s.detach(e.Pod); err != nil {
		s.opt.Log.ErrorContext(ctx, "failed ADD could not be undone; it is retried", "interface", e.Pod.HostIf, "error", err)
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

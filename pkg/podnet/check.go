package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// check compares an attachment with what ADD made of it: the answer then, the
// journal, both ends of the veth, and the node's routes and source checks.
func (s *Server) check(ctx context.Context, req *request) error {
	unlock, err := s.keys.lock(ctx, req.key)
	if err != nil {
		return refuse(api.CodeTryAgain, "", "wait for another request for this attachment: %v", err)
	}
	defer unlock()
	s.mu.Lock()
	e, known := s.entries[req.key]
	s.mu.Unlock()
	if !known || !e.Ready {
		return refuse(3, "call ADD", "container %s has no interface %s of ours", req.ContainerID, req.IfName)
	}
	if row, ok := s.opt.Pods.Get(req.key); !ok || row != e.Pod {
		return fmt.Errorf("attachment %s is not in the table of pods", e.Pod.HostIf)
	}
	ns, err := s.openPodNS(req.netns, req.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	return errors.Join(checkPrevResult(req, e.Pod), s.checkHost(e.Pod), checkPod(e.Pod, ns), s.sync(ctx, e.Pod))
}

func (s *Server) checkHost(pod model.Pod) error {
	link, err := s.host.LinkByName(pod.HostIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", pod.HostIf, err)
	}
	return checkLink(link, HostMAC)
}

// checkPrevResult: later plugins of the list may have added to the result, but
// our addresses must still be in it.
func checkPrevResult(req *request, pod model.Pod) error {
	if req.conf.RawPrevResult == nil {
		return refuse(api.CodeConfig, "the runtime must pass the result of ADD", "CHECK got no prevResult")
	}
	raw, err := json.Marshal(req.conf.RawPrevResult)
	if err != nil {
		return refuse(api.CodeDecode, "", "encode prevResult: %v", err)
	}
	prev, err := version.NewResult(req.version, raw)
	if err != nil {
		return refuse(api.CodeDecode, "", "decode prevResult: %v", err)
	}
	result, err := types100.GetResult(prev)
	if err != nil {
		return refuse(api.CodeDecode, "", "convert prevResult: %v", err)
	}
	for _, ip := range pod.IPs.All() {
		has := func(c *types100.IPConfig) bool {
			addr, ok := netip.AddrFromSlice(c.Address.IP)
			return ok && addr.Unmap() == ip
		}
		if !slices.ContainsFunc(result.IPs, has) {
			return fmt.Errorf("address %s is not in prevResult", ip)
		}
	}
	return nil
}

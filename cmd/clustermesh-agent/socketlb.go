package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// sockets is the fast layer of the node's Services. Where it is switched off, or
// the node can't have it, all goes through nftables.
type sockets struct {
	pins string
	loop *reconcile.Loop[service.FrontKey, service.Front] // nil: off
}

var socketsKey = status.Key{Component: "socketlb"}

func (s *services) newSockets(opt options, loopOpt reconcile.Options) (*sockets, error) {
	out := &sockets{pins: opt.pins}
	target, err := s.socketTarget(opt)
	if err != nil {
		var not *socketlb.Unsupported
		if !errors.As(err, &not) {
			return nil, err
		}
		s.board.Set(socketsKey, status.Info, "off: "+not.Reason+"; Services go through nftables alone", not.Remedy)
		s.log.Info("no socket load-balancing", "reason", not.Reason, "remedy", not.Remedy)
		return out, socketlb.Remove(opt.pins) // an agent before us may have had it
	}
	wanted := func() (map[service.FrontKey]service.Front, bool) {
		p := s.current()
		if p == nil {
			return nil, false
		}
		return socketlb.Fronts(p.Fronts), true
	}
	out.loop = reconcile.NewLoop(socketsKey.Component, target, wanted, loopOpt, s.change.subscribe())
	return out, nil
}

// socketTarget returns an *socketlb.Unsupported if there shall or can be none.
func (s *services) socketTarget(opt options) (*socketlb.Target, error) {
	mode := s.cfg.Services.SocketLB
	if !s.ours() || mode == config.SocketLBOff {
		return nil, &socketlb.Unsupported{Reason: "the configuration says so"}
	}
	o := socketlb.Options{Cgroup: unified(opt.cgroup), Pins: opt.pins}
	if mode == config.SocketLBHost {
		cookie, err := nl.NetnsCookie()
		if err != nil {
			return nil, &socketlb.Unsupported{Reason: err.Error(), Remedy: "use Linux 5.15 or later, or services.socketLB=all"}
		}
		o.OnlyNetns = cookie
	}
	if err := socketlb.Supported(o); err != nil {
		return nil, err
	}
	return socketlb.New(o)
}

// unified is the version 2 hierarchy where version 1 has the first place.
func unified(root string) string {
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		return filepath.Join(root, "unified")
	}
	return root
}

func (x *sockets) run(ctx context.Context) error {
	if x.loop == nil {
		return nil
	}
	return x.loop.Run(ctx)
}

// sync waits until sockets are sent where the newest plan says.
func (x *sockets) sync(ctx context.Context) error {
	if x.loop == nil {
		return nil
	}
	return x.loop.Sync(ctx)
}

// cut ends sockets of the node and of its pods to backends that are gone.
func (x *sockets) cut(p *service.Plan) (int, error) {
	if x.loop == nil {
		return 0, nil
	}
	return socketlb.CutStale(x.pins, p.Fronts, everySpace)
}

// everySpace yields the network namespaces of the node and of its pods.
func everySpace(yield func(nl.Space) bool) {
	const dir = "/run/netns"
	if !yield(nl.Space{}) {
		return
	}
	names, _ := os.ReadDir(dir) // none: no pods
	for _, n := range names {
		fd, err := unix.Open(filepath.Join(dir, n.Name()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it has just gone
		}
		more := yield(nl.SpaceFd(fd))
		unix.Close(fd)
		if !more {
			return
		}
	}
}

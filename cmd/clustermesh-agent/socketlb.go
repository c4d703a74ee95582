package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/datapath/socketlb"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// sockets is the fast layer of the node's Services. Where it is switched off, or
// the node can't have it, all goes through nftables.
type sockets struct {
	log    *slog.Logger
	board  *status.Board
	event  func(reason, message string) // a warning, about this node
	pins   string
	fronts *state.Table[service.FrontKey, service.Front]
	loop   *reconcile.Loop[service.FrontKey, service.Front] // nil: off
	off    *socketlb.Unsupported                            // why
	left   atomic.Int64                                     // fronts that have no room
}

var (
	socketsKey = status.Key{Component: "socketlb"}
	roomKey    = status.Key{Component: "socketlb", Object: "maps"}
	endKey     = status.Key{Component: "socketlb", Object: "stale UDP sockets"}
)

func (s *services) newSockets(opt options, loopOpt reconcile.Options) (*sockets, error) {
	out := &sockets{log: s.log, board: s.board, event: s.event, pins: opt.pins, fronts: state.New[service.FrontKey, service.Front]()}
	target, err := s.socketTarget(opt, out.room)
	if errors.As(err, &out.off) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.loop = reconcile.NewTableLoop(socketsKey.Component, target, out.fronts, s.orphans, loopOpt, s.change.subscribe())
	return out, nil
}

// update takes what has changed of the fronts.
func (x *sockets) update(set map[service.FrontKey]service.Front, del []service.FrontKey) {
	if x.loop == nil {
		return
	}
	fit := socketlb.Fronts(set)
	for k := range set {
		if _, fits := fit[k]; !fits { // it may have fitted before
			del = append(del, k)
		}
	}
	x.fronts.Update(planSource, fit, del)
}

// socketTarget returns an *socketlb.Unsupported if there shall or can be none.
func (s *services) socketTarget(opt options, left func(int, error)) (*socketlb.Target, error) {
	mode := s.cfg.Services.SocketLB
	if !s.ours() || mode == config.SocketLBOff {
		return nil, &socketlb.Unsupported{Reason: "the configuration says so"}
	}
	o := socketlb.Options{Cgroup: unified(opt.cgroup), Pins: opt.pins, Left: left}
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
	if x.loop != nil {
		return x.loop.Run(ctx)
	}
	x.clear(ctx)
	<-ctx.Done()
	return ctx.Err()
}

// clear takes out what an agent before us may have put in: nobody keeps it right.
func (x *sockets) clear(ctx context.Context) {
	for ctx.Err() == nil {
		err := socketlb.Remove(x.pins)
		if err == nil {
			x.board.Set(socketsKey, status.Info, "off: "+x.off.Reason+"; Services go through nftables alone", x.off.Remedy)
			x.log.Info("no socket load-balancing", "reason", x.off.Reason, "remedy", x.off.Remedy)
			return
		}
		if x.board.Set(socketsKey, status.Degraded, "off: "+x.off.Reason+"; but programs of before may send sockets to backends that are gone: "+err.Error(),
			"remove "+x.pins+" on the node") {
			x.log.Error("can't remove programs, retrying", "pins", x.pins, "error", err)
		}
		pause(ctx, 10*time.Second)
	}
}

// room says where people look that fronts have no room in the maps.
func (x *sockets) room(fronts int, why error) {
	x.left.Store(int64(fronts))
	if fronts == 0 {
		x.board.Clear(roomKey)
		x.log.Info("the maps of socket load-balancing have room again")
		return
	}
	message := fmt.Sprintf("%d addresses of Services are left to nftables: %v", fronts, why)
	if x.board.Set(roomKey, status.Degraded, message, "they work, only slower; fewer Services or backends make room") {
		x.log.Warn("maps of socket load-balancing are full", "left", fronts, "error", why)
		x.event("SocketLBFull", message)
	}
}

// sync waits until sockets are sent where the newest plan says.
func (x *sockets) sync(ctx context.Context) error {
	if x.loop == nil {
		return nil
	}
	return x.loop.Sync(ctx)
}

// cut ends sockets of the node and of its pods to backends that are gone.
func (x *sockets) cut(fronts map[service.FrontKey]service.Front) (int, error) {
	if x.loop == nil {
		return 0, nil
	}
	n, err := socketlb.CutStale(x.pins, fronts, everySpace)
	return n, x.ended(err)
}

// ended says that sockets can't be ended. Trying again would not help.
func (x *sockets) ended(err error) error {
	if errors.Is(err, socketlb.ErrCantEnd) {
		x.board.Set(endKey, status.Degraded, err.Error(), "restart UDP clients that stay connected to a backend that is gone, or set services.socketLB=off")
		return nil
	}
	if err == nil {
		x.board.Clear(endKey)
	}
	return err
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

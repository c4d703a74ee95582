package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// notReady says why no pod can be wired now; nil means one can.
func (a *agent) notReady() error {
	p, _ := a.world.current()
	switch {
	case p == nil:
		return errors.New("this node, its addresses or the mesh's prefixes are not known yet")
	case !a.programmed.Load():
		return errors.New("the node's filters and routes are not in place yet")
	}
	return nil
}

// announce tells the container runtime and Kubernetes that the node can have
// pods, once it can: the CNI configuration comes last, because kubelet takes it
// for a promise.
func (a *agent) announce(ctx context.Context) error {
	install := a.install()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"program node", a.firstPass},
		{"install CNI plugin", func(context.Context) error { return install.Plugin() }},
		{"write CNI configuration", func(context.Context) error { return install.Config() }},
		{"set node condition", a.clearUnavailable},
		{"tell the CNI plugin", func(context.Context) error { return a.served() }},
	} {
		if err := a.insist(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	a.log.Info("agent is ready")
	return a.stayAnnounced(ctx, install)
}

// stayAnnounced repairs what others change: some installers wipe directories,
// and kubelet sets NetworkUnavailable when a node registers anew.
func (a *agent) stayAnnounced(ctx context.Context, install podnet.Install) error {
	for tick := time.NewTicker(15 * time.Second); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		case <-tick.C:
		}
		err := errors.Join(install.Plugin(), install.Config(), a.clearUnavailable(ctx), a.served())
		a.note("announce", err)
	}
}

// served notes for the CNI plugin that pods can be wired; once they can, they go
// on to be until the agent ends.
func (a *agent) served() error {
	return os.WriteFile(filepath.Join(filepath.Dir(a.opt.socket), api.ServedFile), nil, 0o600)
}

func (a *agent) install() podnet.Install {
	return podnet.Install{Binary: a.opt.plugin, BinDir: a.opt.cniBin, ConfDir: a.opt.cniConf, Exclusive: a.cfg.CNI.Exclusive, Log: a.log}
}

func (a *agent) firstPass(ctx context.Context) error {
	if err := a.loops.syncFirst(ctx); err != nil {
		return err
	}
	a.programmed.Store(true)
	return nil
}

func (a *agent) clearUnavailable(ctx context.Context) error {
	if err := a.client.SetNetworkReady(ctx, a.opt.node, "ClustermeshIsUp", "clustermesh-agent has programmed this node"); err != nil {
		return err
	}
	if a.cfg.CNI.StartupTaint == "" {
		return nil
	}
	return a.client.RemoveTaint(ctx, a.opt.node, a.cfg.CNI.StartupTaint)
}

// insist does a step until it succeeds, visibly.
func (a *agent) insist(ctx context.Context, name string, do func(context.Context) error) error {
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		err := do(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.note(name, err)
		if err == nil {
			return nil
		}
		pause(ctx, wait)
	}
}

// note puts the outcome of one step on the board.
func (a *agent) note(step string, err error) {
	key := status.Key{Component: "start", Object: step}
	if err == nil {
		a.board.Clear(key)
		return
	}
	if a.board.Set(key, status.Degraded, err.Error(), "it is retried; see the agent's log") {
		a.log.Error("step failed, retrying", "step", step, "error", err)
	}
}

// observe tells people, where they look, of pods that could not be wired. It
// must not block.
func (a *agent) observe(o podnet.Outcome) {
	if o.Err == nil || o.Verb != "ADD" {
		return
	}
	a.log.Warn("pod not wired", "namespace", o.Namespace, "pod", o.Name, "error", o.Err)
	a.events.OnNode(a.opt.node, true, "PodNotWired", o.Namespace+"/"+o.Name+": "+o.Err.Error())
}

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/status"
)

const (
	conflist     = "05-clustermesh.conflist"
	startupTaint = "clustermesh.io/agent-not-ready:NoSchedule"
)

// announcing is an agent as far as announce goes, with something in the way of
// each of its steps.
type announcing struct {
	*agent
	t       *testing.T
	dir     string
	refused sync.Map // of "program", which the kernel does, and "status" and "taint", which Kubernetes does
}

func newAnnouncing(t *testing.T) *announcing {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: "clustermesh.io/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}}}}
	k8s := fake.NewClientset(node)
	a := &announcing{t: t, dir: t.TempDir()}
	for _, what := range []string{"program", "status", "taint"} {
		a.refused.Store(what, true)
	}
	k8s.PrependReactor("patch", "nodes", func(act k8stesting.Action) (bool, runtime.Object, error) {
		what := "taint"
		if act.GetSubresource() == "status" {
			what = "status"
		}
		err := a.try(what)
		return err != nil, nil, err
	})
	a.agent = &agent{log: slog.New(slog.DiscardHandler), board: status.NewBoard(time.Now), client: &kube.Client{Interface: k8s},
		opt: options{node: "n1", plugin: a.path("image"), cniBin: a.path("bin"), cniConf: a.path("conf"), socket: a.path("agent.sock")},
		loops: &loops{order: []runner{
			{first: func(context.Context) error { return nil }},
			{first: func(context.Context) error { return a.try("program") }},
		}}}
	a.cfg.CNI.StartupTaint = startupTaint
	a.write("conf", "a file where the directory has to be")
	return a
}

func (a *announcing) try(what string) error {
	if _, no := a.refused.Load(what); no {
		return errors.New(what + " is refused")
	}
	return nil
}

func (a *announcing) path(name string) string { return filepath.Join(a.dir, name) }

func (a *announcing) write(name, data string) {
	if err := os.WriteFile(a.path(name), []byte(data), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *announcing) remove(name string) {
	if err := os.Remove(a.path(name)); err != nil {
		a.t.Fatal(err)
	}
}

// done are the steps that have been taken.
func (a *announcing) done() string {
	n, err := a.client.CoreV1().Nodes().Get(a.t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		a.t.Fatal(err)
	}
	_, noPlugin := os.Stat(a.path("bin/clustermesh-cni"))
	_, noConfig := os.Stat(a.path("conf/" + conflist))
	var out []string
	for _, step := range []struct {
		name string
		done bool
	}{
		{"programmed", a.programmed.Load()}, {"plugin", noPlugin == nil}, {"configuration", noConfig == nil},
		{"available", len(n.Status.Conditions) == 1 && n.Status.Conditions[0].Status == corev1.ConditionFalse}, {"untainted", len(n.Spec.Taints) == 0},
	} {
		if step.done {
			out = append(out, step.name)
		}
	}
	return strings.Join(out, " ")
}

// TestAnnounce: each step is tried until it succeeds, and none is taken before
// the one ahead of it: kubelet takes the CNI configuration for a promise, and the
// scheduler the missing taint (invariant N7). What others undo is done again.
func TestAnnounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAnnouncing(t)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { _ = a.announce(ctx) })
		for _, step := range []struct {
			name   string
			change func()
			want   string
		}{
			{"filters can't be set", func() {}, ""},
			{"no plugin to copy", func() { a.refused.Delete("program") }, "programmed"},
			{"no place for the configuration", func() { a.write("image", "ELF") }, "programmed plugin"},
			{"the condition can't be set", func() { a.remove("conf") }, "programmed plugin configuration"},
			{"the taint can't be removed", func() { a.refused.Delete("status") }, "programmed plugin configuration available"},
			{"nothing in the way", func() { a.refused.Delete("taint") }, "programmed plugin configuration available untainted"},
			{"files wiped", func() { a.remove("conf/" + conflist); a.remove("bin/clustermesh-cni") }, "programmed plugin configuration available untainted"},
		} {
			step.change()
			time.Sleep(time.Minute) // more than the longest pause between tries
			synctest.Wait()
			if got := a.done(); got != step.want {
				t.Fatalf("%s: %q, want %q", step.name, got, step.want)
			}
		}
		if worst := a.board.Worst(); worst != status.OK {
			t.Errorf("board says %v at the end", worst)
		}
	})
}

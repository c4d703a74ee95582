package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
)

// apply writes the Peers that are missing, or with --refresh those that differ, and waits for the links.
func (c *connecting) apply(ctx context.Context, links []link) error {
	due := c.due(links)
	if err := refusal("connect", rehearse(ctx, due)); err != nil {
		return err
	}
	if c.options.refresh {
		if err := c.consent(due); err != nil {
			return err
		}
	}
	if err := c.writeAll(ctx, due); err != nil {
		return err
	}
	if !c.options.wait {
		fmt.Fprintf(c.out, "Applied. Follow the links with `clustermesh status`.\n")
		return nil
	}
	return c.waitLinks(ctx, links)
}

// due are the links that are to be written.
func (c *connecting) due(links []link) []link {
	var due []link
	for _, l := range links {
		if l.have != nil && (!c.options.refresh || len(l.changes()) == 0) {
			c.show.step("peer %s in context %s is there already", l.of.Name, l.context)
			continue
		}
		due = append(due, l)
	}
	return due
}

// rehearse lets the API servers check each Peer without keeping it: rights, schema and admission are of the things to
// find out before anything is changed.
func rehearse(ctx context.Context, due []link) []problem {
	var problems []problem
	for _, l := range due {
		if _, err := l.apply(ctx, metav1.DryRunAll); err != nil {
			problems = append(problems, problem{Object: "context " + l.context, What: err.Error()})
		}
	}
	return problems
}

// writeAll writes all of the Peers or none.
func (c *connecting) writeAll(ctx context.Context, due []link) error {
	var done []written
	for _, l := range due {
		w, err := l.write(ctx)
		if err != nil && unclear(err) {
			done = append(done, w)
		}
		if err != nil {
			return errors.Join(err, undoAll(ctx, done))
		}
		done = append(done, w)
		c.show.step("applied peer %s in context %s", l.of.Name, l.context)
		c.tellKept(l, w)
	}
	return nil
}

// written is a Peer that this run wrote, and can take back.
type written struct {
	link link
	uid  types.UID
	spec v1alpha1.PeerSpec // as the API server merged it
}

// apply sends the Peer. Somebody else's value of a field is overwritten only where it was shown and consented to.
func (l link) apply(ctx context.Context, dryRun ...string) (*unstructured.Unstructured, error) {
	options := metav1.ApplyOptions{FieldManager: fieldManager, Force: l.have != nil, DryRun: dryRun}
	applied, err := l.in.dynamic.Resource(v1alpha1.Peers).Apply(ctx, l.of.Name, l.object(), options)
	if err != nil {
		return nil, fmt.Errorf("apply peer %s: %w", l.of.Name, err)
	}
	return applied, nil
}

func (l link) write(ctx context.Context) (written, error) {
	applied, err := l.apply(ctx)
	if err != nil {
		return written{link: l}, fmt.Errorf("context %s: %w", l.context, err)
	}
	var peer v1alpha1.Peer
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(applied.Object, &peer); err != nil {
		return written{link: l, uid: applied.GetUID()}, fmt.Errorf("read the applied peer %s: %w", l.of.Name, err)
	}
	return written{link: l, uid: peer.UID, spec: peer.Spec}, nil
}

// unclear tells whether a request that failed may have been carried out: there was no answer that says otherwise.
func unclear(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}

// tellKept names items that stay because somebody else put them there: the lists are merged item by item.
func (c *connecting) tellKept(l link, w written) {
	for field, items := range map[string]*change{
		"spec.endpoints":       listChange("", w.spec.Endpoints, l.endpoints),
		"spec.import.podCIDRs": listChange("", w.spec.Import.PodCIDRs, texts(l.of.PodCIDRs)),
	} {
		if items != nil && len(items.removed) > 0 {
			c.show.step("warning: peer %s in context %s keeps %s in %s, which another tool or user owns; remove it with `kubectl --context %[2]s edit peer %[1]s`",
				l.of.Name, l.context, strings.Join(items.removed, ", "), field)
		}
	}
}

// undoAll takes back what this run wrote, whether or not the user's time is up: a link of which only one side knows
// would look like a fault.
func undoAll(ctx context.Context, done []written) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	var errs []error
	for i := len(done) - 1; i >= 0; i-- {
		if err := done[i].undo(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && len(done) > 0 {
		return errors.New("what was written before is taken back, nothing has changed")
	}
	return errors.Join(errs...)
}

func (w written) undo(ctx context.Context) error {
	peers, name := w.link.in.dynamic.Resource(v1alpha1.Peers), w.link.of.Name
	if w.link.have != nil {
		_, err := peers.Apply(ctx, name, w.link.previous(), metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		if err != nil {
			return fmt.Errorf("restore peer %s in context %s: %w; compare it with `%s`", name, w.link.context, err, "clustermesh connect --refresh --destination-context CONTEXT")
		}
		return nil
	}
	options := metav1.DeleteOptions{}
	if w.uid != "" {
		options.Preconditions = &metav1.Preconditions{UID: &w.uid}
	}
	err := peers.Delete(ctx, name, options)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take back peer %s in context %s: %w; run `clustermesh disconnect --context %[2]s %[1]s`", name, w.link.context, err)
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// waitLinks waits until every side says that it is connected and has taken over what the other exports.
func (c *connecting) waitLinks(ctx context.Context, links []link) error {
	ready := make([]bool, len(links))
	err := c.show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		var waits []string
		for i, l := range links {
			if ready[i] {
				continue
			}
			why, err := c.lookAt(ctx, l)
			if err != nil {
				return false, "", err
			}
			if ready[i] = why == ""; !ready[i] {
				waits = append(waits, fmt.Sprintf("%s → %s: %s", l.cluster, l.of.Name, why))
			}
		}
		return len(waits) == 0, strings.Join(waits, "; "), nil
	})
	if err != nil {
		late := links[max(0, slices.Index(ready, false))]
		return fmt.Errorf("the Peers are written, but the link is not up: %w; see `clustermesh troubleshoot --context %s %s`", err, late.context, late.of.Name)
	}
	for _, l := range links {
		if l.context == links[0].context {
			fmt.Fprintf(c.out, "Clusters %s and %s are connected.\n", l.cluster, l.of.Name)
		}
	}
	return nil
}

// lookAt says what one side waits for, "" if it is up. API servers restart while one waits: only a missing object or
// right ends the wait.
func (c *connecting) lookAt(ctx context.Context, l link) (string, error) {
	peer, err := getPeer(ctx, l.in, l.of.Name)
	if err != nil {
		return transient(fmt.Sprintf("read peer %s in context %s", l.of.Name, l.context), err)
	}
	why := linkWait(peer)
	if why == "" {
		c.show.step("%s → %s: connected and synced, %s, at %s", l.cluster, l.of.Name, counted(peer.Status.Nodes, "node"), peer.Status.Endpoint)
		for _, r := range peer.Status.Refused {
			c.show.step("warning: %s → %s: %s", l.cluster, l.of.Name, printable(refusalText(status.Refusal(r))))
		}
	}
	return why, nil
}

// getPeer reads one Peer. Its error is not wrapped, so that callers can tell what kind it is and say whose it was.
func getPeer(ctx context.Context, m *member, name string) (*v1alpha1.Peer, error) {
	object, err := m.dynamic.Resource(v1alpha1.Peers).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	peer := &v1alpha1.Peer{}
	return peer, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, peer)
}

// linkWait says what a link lacks, "" if nothing. Conditions of an older spec say nothing about this one.
func linkWait(peer *v1alpha1.Peer) string {
	if peer.Status.ObservedGeneration < peer.Generation {
		return "the mesh API server has not looked at it yet"
	}
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionConnected, v1alpha1.ConditionSynced} {
		condition := meta.FindStatusCondition(peer.Status.Conditions, kind)
		switch {
		case condition == nil && kind == v1alpha1.ConditionAccepted:
		case condition == nil:
			return "not " + strings.ToLower(kind) + " yet"
		case condition.Status != metav1.ConditionTrue:
			return strings.TrimSuffix(fmt.Sprintf("not %s (%s): %s", strings.ToLower(kind), condition.Reason, condition.Message), ": ")
		}
	}
	return ""
}

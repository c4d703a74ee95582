package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// notConnected says that there is no Peer to delete.
type notConnected struct{ context, peer, has string }

func (e notConnected) Error() string {
	return fmt.Sprintf("context %s has no peer %q; it has %s", e.context, e.peer, e.has)
}

// traces are what is left of a peer in a cluster.
type traces struct {
	object  bool
	rows    int
	servers []string // API servers that still hold rows
	routes  []string // nodes that still have routes to its nodes
	silent  []string // pods that could not be asked, with the reason
}

// remove deletes the Peer in one cluster and waits until every API server and agent that answers has forgotten it.
func (d *disconnecting) remove(ctx context.Context, m *member, cluster, name string) error {
	seen := observe(ctx, m)
	if seen.Err != nil {
		return fmt.Errorf("context %s: %w", m.context, seen.Err)
	}
	peer := existingPeer(seen.Peers, name)
	if peer == nil {
		return notConnected{m.context, name, peerNames(seen.Peers)}
	}
	before := findTraces(seen, name)
	err := m.dynamic.Resource(v1alpha1.Peers).Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &peer.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete peer %s in context %s: %w", name, m.context, err)
	}
	d.show.step("%s: deleted peer %s (%s, routes on %s)", cluster, name, counted(before.rows, "row"), counted(len(before.routes), "node"))
	if !d.options.wait {
		return nil
	}
	return d.waitGone(ctx, m, cluster, name)
}

func (d *disconnecting) waitGone(ctx context.Context, m *member, cluster, name string) error {
	var left traces
	err := d.show.poll(ctx, func(ctx context.Context) (bool, string, error) {
		seen := observe(ctx, m)
		if seen.Err != nil {
			return false, fmt.Sprintf("%s: %v", cluster, seen.Err), nil
		}
		left = findTraces(seen, name)
		return !left.any(), cluster + ": " + left.String(), nil
	})
	if err != nil {
		return fmt.Errorf("peer %s in context %s is deleted, but not all of it is gone yet: %w; see `clustermesh status --context %[2]s`", name, m.context, err)
	}
	for _, pod := range left.silent {
		d.show.step("%s: could not ask %s; it forgets the peer when it is back", cluster, pod)
	}
	d.show.step("%s: nothing of %s is left", cluster, name)
	return nil
}

// findTraces looks for a peer in what was seen of a cluster.
func findTraces(seen observed, name string) traces {
	left := traces{object: existingPeer(seen.Peers, name) != nil}
	for _, a := range seen.Servers {
		if a.Said == nil {
			left.silent = append(left.silent, fmt.Sprintf("%s (%v)", a.Pod.Name, a.Err))
			continue
		}
		i := slices.IndexFunc(a.Said.Peers, func(p status.Peer) bool { return p.Name == name })
		if i >= 0 {
			left.servers = append(left.servers, a.Pod.Name)
			left.rows = max(left.rows, total(a.Said.Peers[i].Counts))
		}
	}
	for _, a := range seen.Agents {
		if a.Said == nil {
			left.silent = append(left.silent, fmt.Sprintf("the agent on %s (%v)", a.Pod.Spec.NodeName, a.Err))
			continue
		}
		if slices.ContainsFunc(a.Said.Nodes, func(r status.Remote) bool { return r.Cluster == name }) {
			left.routes = append(left.routes, a.Pod.Spec.NodeName)
		}
	}
	return left
}

func (t traces) any() bool { return t.object || len(t.servers) > 0 || len(t.routes) > 0 }

func (t traces) String() string {
	var parts []string
	if t.object {
		parts = append(parts, "the Peer object")
	}
	if len(t.servers) > 0 {
		parts = append(parts, "rows in "+some(t.servers))
	}
	if len(t.routes) > 0 {
		parts = append(parts, "routes on "+some(t.routes))
	}
	return strings.Join(parts, ", ") + " to go"
}

// some lists a few names and how many there are beyond.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func peerNames(peers []v1alpha1.Peer) string {
	if len(peers) == 0 {
		return "none"
	}
	names := make([]string, len(peers))
	for i, peer := range peers {
		names[i] = peer.Name
	}
	return strings.Join(names, ", ")
}

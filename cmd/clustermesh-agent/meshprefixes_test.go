package main

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

func prefixesOf(path string) *meshPrefixes {
	own := config.Cluster{Name: "us", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	return newMeshPrefixes(slog.New(slog.DiscardHandler), own, path, state.New[model.NodeKey, model.Node]())
}

// peersOf are Peer objects, given as name and pod range.
func peersOf(ranges map[string]string) map[string]kube.Peer {
	out := map[string]kube.Peer{}
	for name, cidr := range ranges {
		obj := &v1alpha1.Peer{Spec: v1alpha1.PeerSpec{Import: v1alpha1.Import{PodCIDRs: []string{cidr}}}}
		obj.Name, obj.UID = name, "uid"
		out[name] = kube.PeerRow(obj)
	}
	return out
}

// readPeers runs m on what an API server says, until it has taken that in.
func readPeers(t *testing.T, m *meshPrefixes, ranges map[string]string) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = m.run(ctx) })
		m.peers.Replace(kube.Source, peersOf(ranges))
		synctest.Wait()
		cancel()
		running.Wait()
	})
}

func (m *meshPrefixes) want(t *testing.T, known, complete bool, ranges map[string]string) {
	t.Helper()
	if m.known() != known || m.complete() != complete {
		t.Errorf("known %v, complete %v; want %v, %v", m.known(), m.complete(), known, complete)
	}
	want := map[string][]netip.Prefix{"us": {netip.MustParsePrefix("10.1.0.0/16")}}
	for name, cidr := range ranges {
		want[name] = []netip.Prefix{netip.MustParsePrefix(cidr)}
	}
	if diff := cmp.Diff(want, m.byCluster(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("prefixes: %s", diff)
	}
}

// TestPrefixesWithoutAPIServer: an agent that boots with no API server in reach
// knows the mesh that its forerunner knew, and can route by it (invariant N4),
// but not that this is all there is.
func TestPrefixesWithoutAPIServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "mesh.json")
	mesh := map[string]string{"east": "10.2.0.0/16", "south": "fd00:3::/48"}

	first := prefixesOf(path)
	if err := first.restore(); err != nil {
		t.Fatal(err)
	}
	first.want(t, false, false, nil) // the node's first boot
	readPeers(t, first, mesh)
	first.want(t, true, true, mesh)

	again := prefixesOf(path)
	if err := again.restore(); err != nil {
		t.Fatal(err)
	}
	again.want(t, true, false, mesh)
	delete(mesh, "east") // while nobody listened
	readPeers(t, again, mesh)
	again.want(t, true, true, mesh)

	third := prefixesOf(path)
	if err := third.restore(); err != nil {
		t.Fatal(err)
	}
	third.want(t, true, false, mesh)
}

// TestBadJournal: a journal in pieces is none; one that can't be read is an error,
// since the mesh's ranges may stand in it.
func TestBadJournal(t *testing.T) {
	torn := filepath.Join(t.TempDir(), "mesh.json")
	if err := os.WriteFile(torn, []byte(`[{"cluster":"east","pre`), 0o600); err != nil {
		t.Fatal(err)
	}
	m := prefixesOf(torn)
	if err := m.restore(); err != nil {
		t.Errorf("torn journal: %v", err)
	}
	m.want(t, false, false, nil)
	if err := prefixesOf(t.TempDir()).restore(); err == nil {
		t.Error("a journal that can't be read is no error")
	}
}

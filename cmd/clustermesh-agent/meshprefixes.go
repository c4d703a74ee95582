package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// meshPrefix says that pods of a cluster live in a range.
type meshPrefix struct {
	Cluster string       `json:"cluster"`
	Prefix  netip.Prefix `json:"prefix"`
}

// The sources of mesh prefixes beside kube.Source, the Peer objects.
const (
	sourceConfig  = "config"  // our own cluster's
	sourceJournal = "journal" // what the Peer objects said before the last restart
)

// meshPrefixes knows the pod ranges of the whole mesh, from configuration and
// Peer objects, and keeps them in a file: packets to a mesh prefix must never
// be masqueraded or leave by the default route, not even on a node that boots
// with no API server in reach.
type meshPrefixes struct {
	log     *slog.Logger
	cluster config.Cluster
	path    string
	peers   *state.Table[string, kube.Peer]
	table   *state.Table[meshPrefix, struct{}]
	nodes   *state.Table[model.NodeKey, model.Node]
	ready   atomic.Bool   // the table can be relied on
	listed  atomic.Bool   // the Peer objects were read, and their nodes are expected
	joined  chan struct{} // readable after a peer has come, or come back: its rows may be there already
}

func newMeshPrefixes(log *slog.Logger, cluster config.Cluster, path string, nodes *state.Table[model.NodeKey, model.Node]) *meshPrefixes {
	m := &meshPrefixes{log: log, cluster: cluster, path: path, nodes: nodes, joined: make(chan struct{}, 1),
		peers: state.New[string, kube.Peer](), table: state.New[meshPrefix, struct{}]()}
	m.peers.Expect(kube.Source)
	own := map[meshPrefix]struct{}{}
	for _, p := range cluster.PodCIDRs {
		own[meshPrefix{cluster.Name, p}] = struct{}{}
	}
	m.table.Replace(sourceConfig, own)
	m.table.Expect(sourceJournal) // so that dropping it wakes readers, also where there was none
	return m
}

// restore reads the journal of the agent before us, if there was one.
func (m *meshPrefixes) restore() error {
	b, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	var list []meshPrefix
	if err := json.Unmarshal(b, &list); err != nil {
		m.log.Warn("journal of mesh prefixes can't be read; waiting for Peer objects instead", "path", m.path, "error", err)
		return nil
	}
	rows := map[meshPrefix]struct{}{}
	for _, p := range list {
		rows[p] = struct{}{}
	}
	m.table.Replace(sourceJournal, rows)
	m.ready.Store(true)
	return nil
}

// known tells whether the table can be relied on: from the Peer objects, or
// from the journal while these can't be read.
func (m *meshPrefixes) known() bool { return m.ready.Load() }

// complete tells whether every peer that there is at the start is expected in
// the nodes' table; before that, its being synced says nothing of other clusters.
func (m *meshPrefixes) complete() bool { return m.listed.Load() }

// run follows the Peer objects until ctx ends.
func (m *meshPrefixes) run(ctx context.Context) error {
	wake := m.peers.Subscribe()
	var before map[string][]netip.Prefix // nil at first
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
		peers, synced := m.peers.Snapshot()
		if !synced {
			continue
		}
		accepted := m.accepted(peers)
		m.follow(accepted, before == nil)
		if before != nil {
			m.welcome(before, accepted)
		}
		m.save(accepted)
		m.table.Replace(kube.Source, rowsOf(accepted))
		m.listed.Store(true) // only now: who trusts the table must find the Peers in it
		m.ready.Store(true)
		m.table.Drop(sourceJournal)
		before = accepted
	}
}

// accepted are the pod ranges of the Peers that are what they say. The API server
// decides by the same function, and says in a Peer's conditions why one is not.
func (m *meshPrefixes) accepted(peers map[string]kube.Peer) map[string][]netip.Prefix {
	own := mesh.Own{Cluster: m.cluster.Name, PodCIDRs: m.cluster.PodCIDRs, ServiceCIDRs: m.cluster.ServiceCIDRs}
	out := map[string][]netip.Prefix{}
	for name, verdict := range mesh.Accept(own, slices.Collect(maps.Values(peers))) {
		if verdict.Rules != nil { // also one that can't be connected to just now: what its pods have stays theirs
			out[name] = verdict.Rules.PodCIDRs
		}
	}
	return out
}

// follow makes the nodes' table expect a report of every peer that is there at
// the start, and forget peers that are gone.
func (m *meshPrefixes) follow(accepted map[string][]netip.Prefix, first bool) {
	for name := range accepted {
		if first {
			m.nodes.Expect(peerSource(name))
		}
	}
	for source := range m.nodes.Sources() {
		name, ours := strings.CutPrefix(source, peerSource(""))
		if _, still := accepted[name]; ours && !still {
			m.nodes.Drop(source)
		}
	}
}

// welcome asks for a list when a peer comes after the start: what the mirror holds
// of it may be from before it went, and does not come again by itself.
func (m *meshPrefixes) welcome(before, accepted map[string][]netip.Prefix) {
	for name := range accepted {
		if _, old := before[name]; !old {
			select {
			case m.joined <- struct{}{}:
			default:
			}
		}
	}
}

// peerSource is the source of a peer's rows in the nodes' table.
func peerSource(peer string) string { return "peer/" + peer }

func rowsOf(accepted map[string][]netip.Prefix) map[meshPrefix]struct{} {
	rows := map[meshPrefix]struct{}{}
	for name, prefixes := range accepted {
		for _, p := range prefixes {
			rows[meshPrefix{name, p}] = struct{}{}
		}
	}
	return rows
}

// byCluster is the table as the plan wants it.
func (m *meshPrefixes) byCluster() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for row := range m.table.Rows() {
		out[row.Cluster] = append(out[row.Cluster], row.Prefix)
	}
	return out
}

// save writes the journal, whole or not at all. A failure is logged: the
// journal matters only to a boot without an API server.
func (m *meshPrefixes) save(accepted map[string][]netip.Prefix) {
	var list []meshPrefix
	for row := range rowsOf(accepted) {
		list = append(list, row)
	}
	slices.SortFunc(list, func(a, b meshPrefix) int {
		return strings.Compare(a.Cluster+" "+a.Prefix.String(), b.Cluster+" "+b.Prefix.String())
	})
	b, err := json.MarshalIndent(list, "", " ")
	if err == nil {
		err = replaceFile(m.path, append(b, '\n'))
	}
	if err != nil {
		m.log.Error("journal of mesh prefixes not written", "path", m.path, "error", err)
	}
}

// replaceFile writes a file whole or not at all, and so that it survives a loss
// of power; it leaves one alone that says the same.
func replaceFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

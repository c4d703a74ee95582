package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/test/bench/peers"
	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// The size that the mirror is designed for: so much of each peer.
var peerShape = peers.Shape{Nodes: 100, Identities: 100, Endpoints: 1000}

// oneNode boots a lab of one node with the product on it.
func (b *bench) oneNode(ctx context.Context, name string) (*fixture.Mesh, *lab.Node, error) {
	progress("%s: a cluster of one node boots", name)
	m, err := fixture.Up(ctx, fixture.Config{Config: lab.Config{
		Name: name, Fresh: true, Clusters: []lab.ClusterConfig{{Name: "west", Nodes: 1}}}})
	if err != nil {
		return nil, nil, err
	}
	progress("%s: clustermesh install", name)
	return m, m.Clusters[0].Nodes[0], m.Install(ctx, "west")
}

// down takes a lab down, also when ctx has ended.
func (b *bench) down(ctx context.Context, name string) {
	if b.keep {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := lab.Down(ctx, "", name); err != nil {
		progress("%s is still up: %v", name, err)
	}
}

// mirror measures a real clustermesh-apiserver with many peers in another
// process, on one node.
func (b *bench) mirror(ctx context.Context) ([]Result, error) {
	defer b.down(ctx, "benchmirror")
	_, node, err := b.oneNode(ctx, "benchmirror")
	if err != nil {
		return nil, err
	}
	return measureOnNode(ctx, node, "mirror", mirrorArg{
		Bin: filepath.Join(b.bin, "clustermesh-apiserver"), Cluster: "west", Peers: b.peers})
}

type mirrorArg struct {
	Bin     string // of the API server
	Cluster string
	Peers   int
}

// mirrorRun is the measurement, from inside the node.
type mirrorRun struct {
	mirrorArg
	cluster *cluster
	source  *peers.Source
	server  *server
	client  *clientv3.Client
	reader  *reader
	rest    *rest
	next    uint64 // stamp
	results []Result
}

func mirrorOnNode(ctx context.Context, arg []byte) ([]Result, error) {
	m := &mirrorRun{next: 1}
	if err := json.Unmarshal(arg, &m.mirrorArg); err != nil {
		return nil, err
	}
	const dir = "/var/lib/bench"
	remove, err := freshDir(dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	if m.cluster, err = openCluster(m.Cluster); err != nil {
		return nil, err
	}
	if m.server, err = newServer(ctx, m.cluster, m.Bin, dir); err != nil {
		return nil, err
	}
	if m.source, err = m.cluster.startPeers(ctx, m.Peers, peerShape, dir); err != nil {
		return nil, err
	}
	defer m.source.Close()
	defer m.server.kill()
	defer func() {
		if m.client != nil {
			m.client.Close()
		}
	}()
	for _, step := range []func(context.Context) error{m.coldStart, m.follow, m.idle, m.busy, m.burst, m.followRest, m.restarts} {
		if err := step(ctx); err != nil {
			_ = keepLog(m.server)
			return nil, err
		}
	}
	return m.results, nil
}

// keepLog shows the end of what the API server said.
func keepLog(s *server) error {
	b, err := os.ReadFile(filepath.Join(s.dir, "apiserver.log"))
	if err == nil {
		_, err = os.Stderr.Write(b[max(0, len(b)-3000):])
	}
	return err
}

func (m *mirrorRun) add(r ...Result) { m.results = append(m.results, r...) }

// memory notes what the API server takes.
func (m *mirrorRun) memory(when string) (memory, error) {
	mem, err := memoryOf(m.server.cmd.Process.Pid)
	progress("%s: %.0f MiB resident, %.0f of them anonymous, %.0f at most; %.1f s of processor time",
		when, mem.Now, mem.Anon, mem.Peak, m.server.processor().Seconds())
	return mem, err
}

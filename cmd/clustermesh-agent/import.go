package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// runImport reads the nodes of all peers from our own cluster's mesh API into
// the nodes' table, until ctx ends. The agent never dials another cluster.
func (a *agent) runImport(ctx context.Context) error {
	servers, secret := state.New[string, kube.APIServer](), state.New[string, kube.TLSSecret]()
	cred := &credentials{cluster: a.cfg.Cluster.Name, secret: secret, board: a.board}
	sink := kvstore.NewTableSink(a.nodes, kvstore.TableOptions[model.NodeKey, model.Node]{
		Source:  peerSource,
		Key:     nodeKey,
		Decode:  decodeNode,
		Refused: a.refused,
	})
	reader := kvstore.NewReader(kvstore.TLSDial(cred.tls),
		func() []string { return kube.Dialable(servers.Rows()) },
		kvstore.ByKind(map[wire.Kind]kvstore.Sink{wire.KindNode: sink}),
		kvstore.ReaderOptions{
			Prefix: wire.MirrorPrefix(a.cfg.Cluster.Name, ""), Grouped: true, Kinds: []wire.Kind{wire.KindNode},
			Log: a.log, OnState: a.meshState,
		})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.client.RunAPIServers(ctx, a.log, servers) })
	g.Go(func() error { return a.client.RunSecret(ctx, a.log, kube.SecretAgent, secret) })
	g.Go(func() error { return reader.Run(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-a.mesh.joined:
				reader.Relist()
			}
		}
	})
	return g.Wait()
}

func nodeKey(peer, key string) (model.NodeKey, error) {
	tail, err := wire.ParseTail(key)
	return model.NodeKey{Cluster: peer, Name: tail.Name[0]}, err
}

func decodeNode(peer, key string, value []byte) (model.Node, error) {
	k, err := nodeKey(peer, key)
	if err != nil {
		return model.Node{}, err
	}
	return wire.DecodeNode(k, value)
}

func (a *agent) refused(peer, key string, err error) {
	line := status.Key{Component: "import", Object: peer + "/" + key}
	if err == nil {
		a.board.Clear(line)
		return
	}
	a.board.Set(line, status.Degraded, err.Error(), "the API server of this cluster should not have admitted it: upgrade agent and API server to the same version")
}

func (a *agent) meshState(s kvstore.State) {
	key := status.Key{Component: "mesh-api", Object: s.Endpoint}
	level, message, remedy := status.OK, fmt.Sprintf("connected, revision %d", s.Revision), ""
	if !s.Connected {
		level, message = status.Degraded, "not connected: "+s.Error
		remedy = "remote nodes stay as they are; see the pods of Deployment clustermesh-apiserver"
	}
	key.Object = "" // one line, whichever replica answers
	if a.board.Set(key, level, message, remedy) {
		a.log.Info("mesh API", "level", level, "endpoint", s.Endpoint, "message", message)
	}
}

// credentials are the agent's client certificate, renewed by the API server in
// a Secret and picked up at the next dial.
type credentials struct {
	cluster string
	secret  *state.Table[string, kube.TLSSecret]
	board   *status.Board
}

// tls is what the next dial uses.
func (c *credentials) tls() (*tls.Config, error) {
	key := status.Key{Component: "credentials"}
	conf, err := c.load()
	if err != nil {
		c.board.Set(key, status.Degraded, err.Error(), "the API server writes it; see the pods of Deployment clustermesh-apiserver")
		return nil, err
	}
	c.board.Clear(key)
	return conf, nil
}

func (c *credentials) load() (*tls.Config, error) {
	s, ok := c.secret.Get(kube.SecretAgent)
	if !ok {
		return nil, errors.New("secret " + kube.SecretAgent + " is not there yet")
	}
	pair, err := pki.ParsePair([]byte(s.Cert), []byte(s.Key))
	if err != nil {
		return nil, err
	}
	bundle, err := pki.ParseBundle([]byte(s.CA))
	if err != nil {
		return nil, err
	}
	return pki.ClientConfig(c.cluster, bundle, func() pki.Pair { return pair }), nil
}

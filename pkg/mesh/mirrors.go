package mesh

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// sweep deletes the mirror of whoever is no peer, whenever it was one.
func (s *Set) sweep(ctx context.Context, verdicts map[string]Verdict, complete bool) error {
	if !complete {
		return nil
	}
	held, err := s.mirrored(ctx)
	if err != nil {
		return err
	}
	for name := range held {
		if verdicts[name].Rules != nil {
			continue
		}
		if err := kvstore.DeletePrefix(ctx, s.opt.Store, wire.MirrorPrefix(s.opt.Own.Cluster, name)); err != nil {
			return err
		}
		if _, err := s.opt.Store.Delete(ctx, s.index()+name); err != nil {
			return fmt.Errorf("take %s from the list of mirrors: %w", name, err)
		}
		s.claims.Close(name)
		s.opt.Log.Info("mirror deleted", "peer", name)
	}
	return nil
}

// indexRoot is where the names of those that have a mirror are listed. To find
// them in the mirror itself, etcd would count all its rows once per peer.
const indexRoot = "/clustermesh/mirrored/v1/"

func (s *Set) index() string { return indexRoot + s.opt.Own.Cluster + "/" }

// mirrored is who may have rows in the mirror.
func (s *Set) mirrored(ctx context.Context) (map[string]bool, error) {
	resp, err := s.opt.Store.Get(ctx, s.index(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("list mirrors: %w", err)
	}
	out := make(map[string]bool, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), s.index())] = true
	}
	return out, nil
}

// enter puts a peer on the list before its mirror gets a row.
func (s *Set) enter(ctx context.Context, held map[string]bool, name string) error {
	if held[name] {
		return nil
	}
	if _, err := s.opt.Store.Put(ctx, s.index()+name, ""); err != nil {
		return fmt.Errorf("put %s on the list of mirrors: %w", name, err)
	}
	return nil
}

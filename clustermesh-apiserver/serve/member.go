package serve

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/clusterset"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// expireAfter is the silence after which a peer's backends are withdrawn, if its
// Peer object does not say.
const expireAfter = 10 * time.Minute

// newMember follows the tables.
func (s *server) newMember() *clusterset.Member {
	t := s.tables
	return clusterset.New(clusterset.Options{
		Base:     mcs.Base{Cluster: s.cfg.Cluster.Name, Families: serviceFamilies(s.cfg.Cluster.ServiceCIDRs), PodCIDRs: s.cfg.Cluster.PodCIDRs},
		Services: t.services, Derived: t.derived, Exports: t.exports, Namespaces: t.namespaces, Slices: t.slices, Claims: t.claims,
		Peers: s.members, Wake: t.peers.Subscribe(), Now: time.Now, Log: s.log, Board: s.board,
	})
}

// serviceFamilies are those that Services of our cluster can have.
func serviceFamilies(cidrs []netip.Prefix) (out []string) {
	for _, p := range cidrs {
		family := mcs.IPv4
		if p.Addr().Is6() {
			family = mcs.IPv6
		}
		if !slices.Contains(out, family) {
			out = append(out, family)
		}
	}
	return out
}

// members is who the other clusters are, and whether that is known. Silence begins
// when we began to listen; a replica that does not, for another one fills the
// external etcd, takes all for alive.
func (s *server) members() (map[string]clusterset.Peer, bool) {
	rows, known := s.tables.peers.Snapshot()
	beats, out := s.peers.Beats(), make(map[string]clusterset.Peer, len(rows))
	for name, row := range rows {
		spec, beat := row.Spec(), beats[name]
		p := clusterset.Peer{Peer: mcs.Peer{Export: strings.Join(spec.Export.Namespaces, " ")}, Refused: beat.Refused}
		stale, expire := mesh.StaleAfter, expireAfter
		if spec.StaleAfter != nil {
			stale = spec.StaleAfter.Duration
		}
		if spec.ExpireAfter != nil {
			expire = spec.ExpireAfter.Duration
		}
		switch silent := time.Since(beat.At); {
		case beat.At.IsZero():
		case expire > 0 && silent > expire:
			p.Freshness = mcs.Expired
		case silent > stale:
			p.Freshness = mcs.Stale
		}
		out[name] = p
	}
	return out, known
}

// readMirror follows what the mirror has of the peers' Services, as our agents do:
// it may be that of another replica that wrote an external etcd.
func (s *server) readMirror(ctx context.Context) error {
	backends := kvstore.NewTableSink(s.tables.slices, kvstore.TableOptions[model.SliceKey, string]{
		Source: clusterset.Source, Key: sliceKey, Decode: text})
	claims := kvstore.NewTableSink(s.tables.claims, kvstore.TableOptions[model.ExportKey, string]{
		Source: clusterset.Source, Key: exportKey, Decode: text})
	_, port, err := net.SplitHostPort(s.opt.MeshListen)
	if err != nil {
		return err
	}
	self := []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	return kvstore.NewReader(kvstore.TLSDial(s.keys.reader), func() []string { return self },
		kvstore.ByKind(map[wire.Kind]kvstore.Sink{wire.KindSlice: backends, wire.KindExport: claims}),
		kvstore.ReaderOptions{Prefix: wire.MirrorPrefix(s.cfg.Cluster.Name, ""), Grouped: true,
			Kinds: []wire.Kind{wire.KindSlice, wire.KindExport}, Log: s.log}).Run(ctx)
}

// text is a row as it is: admission has read it.
func text(_, _ string, value []byte) (string, error) { return string(value), nil }

func sliceKey(peer, key string) (model.SliceKey, error) {
	tail, err := wire.ParseTail(key)
	return model.SliceKey{Cluster: peer, Namespace: tail.Name[0], Name: tail.Name[1]}, err
}

func exportKey(peer, key string) (model.ExportKey, error) {
	tail, err := wire.ParseTail(key)
	return model.ExportKey{Cluster: peer, Namespace: tail.Name[0], Name: tail.Name[1]}, err
}

package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// journal is what a server must know to serve its store again before it has
// reached Kubernetes, and to follow its peers: kept beside the embedded etcd,
// for its owner's eyes only. Kubernetes has the last word as soon as it answers.
type journal struct {
	path, cluster       string
	log                 *slog.Logger
	wakePeers, wakeKeys <-chan struct{}
}

// sourceJournal is the source under which rows from the journal are claimed.
const sourceJournal = "journal"

// memory is the file's content. The CA's key is not in it.
type memory struct {
	Cluster string               `json:"cluster"`
	CA      []byte               `json:"ca"` // PEM
	Server  pem                  `json:"server"`
	Peer    pem                  `json:"peer"`
	Peers   map[string]kube.Peer `json:"peers"`
}

type pem struct {
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`
}

func openJournal(dir, cluster string, log *slog.Logger, peers, keys <-chan struct{}) *journal {
	return &journal{path: filepath.Join(dir, "journal.json"), cluster: cluster, log: log, wakePeers: peers, wakeKeys: keys}
}

// read returns what was kept; ok is false if nothing was.
func (j *journal) read() (m memory, ok bool, err error) {
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return memory{}, false, fmt.Errorf("read journal: %w", err)
	}
	return m, true, nil
}

// write keeps m, whole or not at all.
func (j *journal) write(m memory) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("marshal journal: %w", err)
	}
	old, err := os.ReadFile(j.path)
	if err == nil && string(old) == string(b) {
		return nil
	}
	aside := j.path + ".new"
	if err := os.WriteFile(aside, b, 0o600); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := os.Rename(aside, j.path); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func (p pem) pair() (pki.Pair, error) { return pki.ParsePair(p.Cert, p.Key) }

func pemOf(p pki.Pair) (pem, error) {
	key, err := p.KeyPEM()
	return pem{p.CertPEM(), key}, err
}

// restore fills keyring and Peers. A journal that can't be used is no reason
// not to start: Kubernetes has it all.
func (j *journal) restore(keys *keyring, peers *state.Table[string, kube.Peer]) {
	m, ok, err := j.read()
	if err == nil && ok && m.Cluster == j.cluster {
		if err = keys.restore(m); err == nil {
			peers.Update(sourceJournal, m.Peers, nil)
		}
	}
	if err != nil {
		j.log.Warn("journal can't be used, waiting for Kubernetes instead", "error", err)
	}
}

// keep writes what Kubernetes says until ctx ends, and drops what was restored
// once Kubernetes has spoken.
func (j *journal) keep(ctx context.Context, keys *keyring, peers *state.Table[string, kube.Peer]) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-j.wakePeers:
		case <-j.wakeKeys:
		}
		if !peers.Synced() || keys.peer().Cert == nil {
			continue
		}
		peers.Drop(sourceJournal)
		if err := j.note(keys, peers.Rows()); err != nil {
			j.log.Error("journal not written; a restart without Kubernetes would have to wait for it", "error", err)
		}
	}
}

func (j *journal) note(keys *keyring, peers map[string]kube.Peer) (err error) {
	server, ca := keys.server()
	m := memory{Cluster: j.cluster, CA: ca.CertPEM(), Peers: peers}
	if m.Server, err = pemOf(server); err != nil {
		return err
	}
	if m.Peer, err = pemOf(keys.peer()); err != nil {
		return err
	}
	return j.write(m)
}

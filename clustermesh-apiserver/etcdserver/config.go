package etcdserver

import (
	"crypto/rand"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	etcdconfig "go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/features"
)

const (
	memberName = "clustermesh"
	// memberURL stands in the member list and is never listened on.
	memberURL = "http://127.0.0.1:2380"

	defaultQuotaBytes = 2 << 30

	// MaxTxnOps is the number of operations a transaction may hold; etcd's own default.
	MaxTxnOps = 128
	// MaxRequestBytes is the size of a transaction; etcd's own default.
	MaxRequestBytes = 1536 << 10
)

// config is etcd's configuration, small in memory: raft's log is kept in memory
// for followers to catch up from, and there are none.
func config(d dataDir, opt Options) (etcdconfig.ServerConfig, error) {
	urls, err := types.NewURLs([]string{memberURL})
	if err != nil {
		return etcdconfig.ServerConfig{}, fmt.Errorf("parse member URL: %w", err)
	}
	quota := opt.QuotaBytes
	if quota == 0 {
		quota = defaultQuotaBytes
	}
	log := zapLogger(opt.Log)
	return etcdconfig.ServerConfig{
		Name:       memberName,
		ClientURLs: urls,
		PeerURLs:   urls,
		DataDir:    d.etcd(),
		// The token is drawn into the cluster's id, which the write-ahead log
		// keeps: it counts for an empty directory only.
		NewCluster:          true,
		InitialPeerURLsMap:  types.URLsMap{memberName: urls},
		InitialClusterToken: rand.Text(),

		SnapshotCount:          2000,
		SnapshotCatchUpEntries: 1,
		MaxSnapFiles:           1,
		MaxWALFiles:            1,
		UnsafeNoFsync:          true, // see dataDir
		BackendFreelistType:    bolt.FreelistMapType,
		BackendBatchInterval:   100 * time.Millisecond,
		BackendBatchLimit:      10000,
		QuotaBackendBytes:      quota,
		MaxTxnOps:              MaxTxnOps,
		MaxRequestBytes:        MaxRequestBytes,

		TickMs:                      100,
		ElectionTicks:               10,
		InitialElectionTickAdvance:  true,
		StrictReconfigCheck:         true,
		BcryptCost:                  10, // no users, but it is checked
		CompactionBatchLimit:        1000,
		CompactionSleepInterval:     10 * time.Millisecond,
		WatchProgressNotifyInterval: progressInterval,
		DowngradeCheckTime:          time.Hour,
		WarningApplyDuration:        500 * time.Millisecond,
		WarningUnaryRequestDuration: time.Second,
		MaxLearners:                 1,
		Logger:                      log,
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(memberName, log),
	}, nil
}

// progressInterval is how often a watcher that sees no change is told of the
// revision, so that it can resume from there after others have written much.
const progressInterval = 30 * time.Second

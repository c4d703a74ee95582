// Package etcdserver is the store of the mesh API server: etcd inside our own
// process, without a listener of its own, and the front, the gRPC server that
// lets peers and agents read from it. The store holds derived state only. A
// data directory that is damaged or of doubtful origin is put aside and filled
// again from Kubernetes and from the peers.
package etcdserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Options of a Server.
type Options struct {
	Dir        string // owned by the server, mode 0700
	Log        *slog.Logger
	QuotaBytes int64 // 0: 2 GiB
}

// Server is an etcd of one member in this process.
type Server struct {
	etcd   *etcdserver.EtcdServer
	client *clientv3.Client
	dir    dataDir
	log    *slog.Logger

	stopCompacting context.CancelFunc
	helpers        sync.WaitGroup
	closing        sync.Once
	closeErr       error
}

// readyTimeout bounds how long a data directory may take to open. etcd with
// 300,000 rows takes about a second.
const readyTimeout = 60 * time.Second

// Start opens the store in opt.Dir; when it returns the store serves. A data
// directory that can't be opened is put aside, once, with a log line. Close
// must be called in the end.
func Start(ctx context.Context, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	d, err := openDir(opt.Dir, opt.Log)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, d, opt)
	if err != nil && ctx.Err() == nil {
		opt.Log.Error("store does not open, starting with an empty one", "dir", opt.Dir, "error", err)
		if err = d.putAside(); err == nil {
			s, err = open(ctx, d, opt)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", opt.Dir, err), d.release())
	}
	compacting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.stopCompacting = cancel
	s.helpers.Go(func() { s.compact(compacting) })
	return s, nil
}

// open starts etcd in d and waits until it serves.
func open(ctx context.Context, d dataDir, opt Options) (*Server, error) {
	if err := d.markOpening(); err != nil {
		return nil, err
	}
	etcd, err := boot(d, opt)
	if err != nil {
		return nil, err
	}
	etcd.Start()
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	select {
	case <-etcd.ReadyNotify():
	case <-etcd.StopNotify():
		err = errors.New("etcd stopped while it started")
	case <-deadline.C:
		err = fmt.Errorf("etcd was not ready after %s", readyTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil || ctx.Err() != nil { // to be told to stop is no fault of the store
		err = errors.Join(err, d.markOpened())
	}
	if err != nil {
		etcd.HardStop()
		return nil, err
	}
	return &Server{etcd: etcd, client: v3client.New(etcd), dir: d, log: opt.Log}, nil
}

// boot makes the etcd server. etcd panics, or ends the process through its
// logger, on damaged files; our logger turns the latter into a panic, and a
// damaged page of the memory-mapped file into one as well, so that all of it
// is an error here.
func boot(d dataDir, opt Options) (etcd *etcdserver.EtcdServer, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			etcd, err = nil, fmt.Errorf("etcd panicked: %v", p)
		}
	}()
	if err := d.checkDatabase(); err != nil {
		return nil, err
	}
	conf, err := config(d, opt)
	if err != nil {
		return nil, err
	}
	return etcdserver.NewServer(conf)
}

// Client is a client in this process, which needs no connection. It works until Close.
func (s *Server) Client() *clientv3.Client { return s.client }

// ClusterID tells this data directory from every other one.
func (s *Server) ClusterID() uint64 { return uint64(s.etcd.Cluster().ID()) }

// Done is closed when the store has stopped, by Close or by itself.
func (s *Server) Done() <-chan struct{} { return s.etcd.StopNotify() }

// Close stops the store. What is written is on disk when it returns.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.stopCompacting()
		s.helpers.Wait()
		s.closeErr = s.client.Close()
		if errors.Is(s.closeErr, context.Canceled) {
			s.closeErr = nil // how a client without a connection says that it is closed
		}
		s.etcd.Stop()
		s.closeErr = errors.Join(s.closeErr, s.dir.markSynced(), s.dir.release())
	})
	return s.closeErr
}

// Stats is the size of a store.
type Stats struct {
	Revision                int64
	DBBytes, DBInUseBytes   int64
	RaftIndex, AppliedIndex uint64
}

// Stats returns the size of the store now.
func (s *Server) Stats() Stats {
	be := s.etcd.Backend()
	return Stats{
		Revision:     s.etcd.KV().Rev(),
		DBBytes:      be.Size(),
		DBInUseBytes: be.SizeInUse(),
		RaftIndex:    s.etcd.CommittedIndex(),
		AppliedIndex: s.etcd.AppliedIndex(),
	}
}

// removeAll is os.RemoveAll with an error in house style.
func removeAll(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

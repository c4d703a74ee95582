package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
)

// store is our etcd: one inside this process, or a cluster elsewhere.
type store struct {
	external bool
	embedded *etcdserver.Server // nil if external
	client   *clientv3.Client
	backend  etcdserver.Backend
}

func openStore(ctx context.Context, opt Options, log *slog.Logger) (*store, error) {
	if len(opt.EtcdEndpoints) > 0 {
		conf, err := etcdTLS(opt.EtcdTLSDir)
		if err != nil {
			return nil, err
		}
		client, err := kvstore.DialClient(ctx, opt.EtcdEndpoints, conf)
		if err != nil {
			return nil, err
		}
		return &store{external: true, client: client, backend: etcdserver.External(client)}, nil
	}
	srv, err := etcdserver.Start(ctx, etcdserver.Options{Dir: opt.DataDir, Log: log})
	if err != nil {
		return nil, err
	}
	return &store{embedded: srv, client: srv.Client(), backend: srv.Backend()}, nil
}

// etcdTLS reads the client certificate for an external etcd; nil if there is none.
func etcdTLS(dir string) (*tls.Config, error) {
	if _, err := os.Stat(dir); dir == "" || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read CA of etcd: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("read CA of etcd %s: no certificate in it", filepath.Join(dir, "ca.crt"))
	}
	// Read at each handshake: a rotated Secret needs no restart.
	load := func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
		if err != nil {
			return nil, fmt.Errorf("read certificate for etcd: %w", err)
		}
		return &c, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }}, nil
}

// run ends with ctx, or with an error if the embedded etcd stops by itself: the
// process is then started anew.
func (s *store) run(ctx context.Context) error {
	if s.embedded == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.embedded.Done():
		return errors.New("the embedded etcd stopped")
	}
}

// Close stops the store; what is written is on disk then.
func (s *store) Close() error {
	if s.embedded != nil {
		return s.embedded.Close()
	}
	return s.client.Close()
}

var (
	descDBBytes = prometheus.NewDesc("clustermesh_store_db_bytes", "Size of the embedded etcd's file.", nil, nil)
	descDBInUse = prometheus.NewDesc("clustermesh_store_db_in_use_bytes", "Part of the embedded etcd's file that holds rows.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *store) Describe(ch chan<- *prometheus.Desc) { ch <- descDBBytes; ch <- descDBInUse }

// Collect implements prometheus.Collector.
func (s *store) Collect(ch chan<- prometheus.Metric) {
	if s.embedded == nil {
		return
	}
	st := s.embedded.Stats()
	ch <- prometheus.MustNewConstMetric(descDBBytes, prometheus.GaugeValue, float64(st.DBBytes))
	ch <- prometheus.MustNewConstMetric(descDBInUse, prometheus.GaugeValue, float64(st.DBInUseBytes))
}

package kvstore

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Dial makes a connection to one endpoint, "host:port". It need not wait until
// the connection stands.
type Dial func(ctx context.Context, endpoint string) (*grpc.ClientConn, error)

const (
	// A cut link is noticed after keepalive and its timeout.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	connectTimeout   = 5 * time.Second
	// windowBytes bounds what a reader that can't keep up holds in memory.
	// The rest waits in the source's etcd, which reads it from disk later.
	windowBytes = 256 << 10
	// maxMessageBytes bounds one answer: a page of rows, or the changes of one
	// revision, which servers cut at 1.5 MiB.
	maxMessageBytes = 8 << 20
)

// TLSDial dials with the TLS configuration that conf returns at that time, so
// that certificates can be rotated.
func TLSDial(conf func() (*tls.Config, error)) Dial {
	return func(_ context.Context, endpoint string) (*grpc.ClientConn, error) {
		c, err := conf()
		if err != nil {
			return nil, err
		}
		conn, err := grpc.NewClient("passthrough:///"+endpoint,
			grpc.WithTransportCredentials(credentials.NewTLS(c)),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
			grpc.WithInitialWindowSize(windowBytes),
			grpc.WithInitialConnWindowSize(windowBytes),
			grpc.WithWriteBufferSize(4<<10),
			grpc.WithReadBufferSize(16<<10),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
			grpc.WithDisableServiceConfig(),
			grpc.WithNoProxy(), // nodes talk straight to nodes
		)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", endpoint, err)
		}
		return conn, nil
	}
}

// DialClient connects to an external etcd cluster. conf may be nil for one
// without TLS.
func DialClient(ctx context.Context, endpoints []string, conf *tls.Config) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Context:              ctx,
		Endpoints:            endpoints,
		TLS:                  conf,
		DialTimeout:          connectTimeout,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		PermitWithoutStream:  true,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd %v: %w", endpoints, err)
	}
	return client, nil
}

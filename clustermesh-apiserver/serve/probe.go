package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ProbeRequest asks whether an endpoint is the mesh API of a cluster.
type ProbeRequest struct {
	Endpoint      string `json:"endpoint"`
	Cluster       string `json:"cluster"`
	CABundle      string `json:"caBundle"` // PEM
	TimeoutMillis int64  `json:"timeoutMillis"`
}

// prober goes from step to step and keeps what the next one needs.
type prober struct {
	ProbeRequest
	conf *tls.Config
	raw  net.Conn
	tls  *tls.Conn
	kv   pb.KVClient
	out  status.Probe
}

// probe tries an endpoint as a link to it would, step by step.
func (s *server) probe(ctx context.Context, req ProbeRequest) (status.Probe, error) {
	bundle, err := pki.ParseBundle([]byte(req.CABundle))
	if err != nil {
		return status.Probe{}, fmt.Errorf("CA bundle: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(req.TimeoutMillis)*time.Millisecond)
	defer cancel()
	p := &prober{ProbeRequest: req, conf: pki.ClientConfig(req.Cluster, bundle, s.keys.peer)}
	p.out.Endpoint = req.Endpoint
	for _, step := range []struct {
		name string
		try  func(context.Context) (string, error)
	}{
		{status.ProbeDNS, p.dns}, {status.ProbeTCP, p.tcp}, {status.ProbeTLS, p.handshake},
		{status.ProbeCertificate, p.verify}, {status.ProbeAuthorisation, p.authorised}, {status.ProbeHeartbeat, p.heartbeat},
	} {
		detail, err := step.try(ctx)
		r := status.ProbeStep{Name: step.name, OK: err == nil, Detail: detail}
		if err != nil {
			r.Error = err.Error()
		}
		p.out.Steps = append(p.out.Steps, r)
		if err != nil && !p.out.Reachable {
			p.out.Error = step.name + ": " + err.Error()
		}
		if err != nil {
			break
		}
		p.out.Reachable = p.out.Reachable || step.name == status.ProbeCertificate
	}
	if p.raw != nil {
		p.raw.Close()
	}
	return p.out, nil
}

func (p *prober) dns(ctx context.Context) (string, error) {
	host, _, err := net.SplitHostPort(p.Endpoint)
	if err != nil {
		return "", err
	}
	if net.ParseIP(host) != nil {
		return "an address, no name", nil
	}
	addrs, err := net.DefaultResolver.LookupHost(ctx, host)
	return strings.Join(addrs, ", "), err
}

func (p *prober) tcp(ctx context.Context) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Endpoint)
	if err != nil {
		return "", err
	}
	p.raw = conn
	return "connected to " + conn.RemoteAddr().String(), nil
}

// handshake does not judge the certificate yet, so that verify can say what is
// wrong with it.
func (p *prober) handshake(ctx context.Context) (string, error) {
	conf := p.conf.Clone()
	conf.InsecureSkipVerify, conf.VerifyConnection = true, nil
	conf.NextProtos = []string{"h2"}
	p.tls = tls.Client(p.raw, conf)
	if err := p.tls.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return tls.VersionName(p.tls.ConnectionState().Version), nil
}

func (p *prober) verify(context.Context) (string, error) {
	chain := p.tls.ConnectionState().PeerCertificates
	if len(chain) == 0 {
		return "", errors.New("the server showed no certificate")
	}
	leaf := chain[0]
	detail := fmt.Sprintf("%s, valid until %s", strings.Join(leaf.DNSNames, ", "), leaf.NotAfter.UTC().Format(time.RFC3339))
	return detail, p.conf.VerifyConnection(p.tls.ConnectionState())
}

func (p *prober) authorised(ctx context.Context) (string, error) {
	conn, err := kvstore.TLSDial(func() (*tls.Config, error) { return p.conf, nil })(ctx, p.Endpoint)
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	p.kv = pb.NewKVClient(conn)
	value, err := p.get(ctx, wire.ClusterTail())
	if err != nil {
		return "", err
	}
	if value == nil {
		return "it lets us read, and has no cluster row yet", nil
	}
	c, err := wire.DecodeCluster(value)
	if err != nil {
		return "", fmt.Errorf("cluster row: %w", err)
	}
	p.out.ServerVersion = c.Product
	return "it lets us read; cluster " + c.Name + ", version " + c.Product, nil
}

func (p *prober) heartbeat(ctx context.Context) (string, error) {
	value, err := p.get(ctx, wire.HeartbeatTail())
	if err != nil {
		return "", err
	}
	if value == nil {
		return "", errors.New("there is no heartbeat: the peer's clustermesh-apiserver has not published its rows yet")
	}
	h, err := wire.DecodeHeartbeat(value)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("beat %d, %.0f s ago by the peer's clock", h.Count, time.Since(h.At).Seconds()), nil
}

// get reads one row of the peer; nil if it is not there.
func (p *prober) get(ctx context.Context, t wire.Tail) ([]byte, error) {
	resp, err := p.kv.Range(ctx, &pb.RangeRequest{Key: []byte(wire.ExportPrefix(p.Cluster) + t.String())})
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0].Value, nil
}

package etcdserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// The size to design for (DESIGN.md, section 4): this many peers, each with as
// many rows as peerRows makes.
const (
	scalePeers     = 250
	scaleNodes     = 100
	scaleIDs       = 100
	scaleEndpoints = 1000
	scaleRows      = scalePeers * (scaleNodes + scaleIDs + scaleEndpoints)
)

const (
	scaleEnv  = "CLUSTERMESH_SCALE"        // run the measurement
	sourceEnv = "CLUSTERMESH_SCALE_SOURCE" // this process is the source: a directory
)

func peerName(i int) string { return fmt.Sprintf("peer%03d", i) }

// peerRows are the rows of one peer. The values have the sizes of real ones.
func peerRows(i int) map[string]string {
	rows := map[string]string{wire.ClusterTail().String(): strings.Repeat("c", 200), wire.HeartbeatTail().String(): "0"}
	for _, k := range []wire.Kind{wire.KindNode, wire.KindIdentity, wire.KindEndpoint} {
		rows[wire.SyncedTail(k).String()] = "1"
	}
	for n := range scaleNodes {
		rows[wire.NodeTail(fmt.Sprintf("node-%03d", n)).String()] = strings.Repeat("n", 90)
	}
	for n := range scaleIDs {
		rows[wire.IdentityTail("default", uint64(n)<<32).String()] = strings.Repeat("i", 200)
	}
	for n := range scaleEndpoints {
		ip := netip.AddrFrom4([4]byte{10, byte(i), byte(n >> 8), byte(n)})
		rows[wire.EndpointTail("default", uint64(n%scaleIDs)<<32, ip).String()] = strings.Repeat("e", 48)
	}
	return rows
}

type scaleSource struct {
	Addresses []string
	CA        []string // of each peer
	OwnCert   string
	OwnKey    string
}

// TestMirrorScale measures what issue 2 asks of the mirror, with the peers in a
// process of their own and everything on this machine. It is a measurement and
// runs only when asked for.
func TestMirrorScale(t *testing.T) {
	if dir := os.Getenv(sourceEnv); dir != "" {
		serveScale(t, dir)
		return
	}
	if os.Getenv(scaleEnv) == "" {
		t.Skip("set " + scaleEnv + "=1 to measure")
	}
	debug.SetGCPercent(50)
	if s := os.Getenv("GOMEM"); s != "" {
		n, _ := strconv.Atoi(s)
		debug.SetMemoryLimit(int64(n) << 20)
	}
	src := startSource(t)
	dir := t.TempDir()
	dest, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dest.Close() }()
	t.Logf("before: RSS %s", rss())

	start := time.Now()
	m := runMirror(t, src, dest.Client())
	first := m.waitSynced(t, 1)
	half := m.waitSynced(t, scalePeers/2)
	all := m.waitSynced(t, scalePeers)
	t.Logf("cold: first peer %v, half %v, all %v; CPU %v; RSS %s; rows %d; %+v",
		first.Sub(start), half.Sub(start), all.Sub(start), cpu(t), rss(), countRows(t, dest.Client()), dest.Stats())
	resp, err := dest.Client().Get(t.Context(), wire.MirrorRoot, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || resp.Count < scaleRows {
		t.Fatalf("%d rows, want %d: %v", resp.Count, scaleRows, err)
	}

	measureLatency(t, src, dest.Client())
	t.Logf("end: RSS %s", rss())
	debug.FreeOSMemory()
	t.Logf("after GC: RSS %s", rss())

	m.stop()
	if err := dest.Close(); err != nil {
		t.Fatal(err)
	}
	used, start := cpu(t), time.Now()
	if dest, err = etcdserver.Start(t.Context(), etcdserver.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	opened := time.Since(start)
	rev := dest.Stats().Revision
	m = runMirror(t, src, dest.Client())
	half, all = m.waitSynced(t, scalePeers/2), m.waitSynced(t, scalePeers)
	t.Logf("restarted: open %v, half %v, all %v; CPU %v; %d writes; RSS %s",
		opened, half.Sub(start), all.Sub(start), cpu(t)-used, dest.Stats().Revision-rev, rss())
}

type scaleMirror struct {
	stop   func()
	synced chan time.Time
	n      int
	last   time.Time
}

func (m *scaleMirror) waitSynced(t *testing.T, n int) time.Time {
	t.Helper()
	for m.n < n {
		select {
		case at := <-m.synced:
			m.n, m.last = m.n+1, at
		case <-time.After(120 * time.Second):
			t.Fatalf("%d of %d peers are synced after two minutes", m.n, n)
		}
	}
	return m.last
}

// runMirror runs a reader per peer until the test ends.
func runMirror(t *testing.T, src *source, dest *clientv3.Client) *scaleMirror {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	m := &scaleMirror{stop: func() { cancel(); wg.Wait() }, synced: make(chan time.Time, scalePeers)}
	t.Cleanup(m.stop)
	own := src.own(t)
	gate := kvstore.NewGate(4)
	for i, addr := range src.Addresses {
		bundle, err := pki.ParseBundle([]byte(src.CA[i]))
		if err != nil {
			t.Fatal(err)
		}
		conf := pki.ClientConfig(peerName(i), bundle, func() pki.Pair { return own })
		done := false
		sink := kvstore.NewCopySink(dest, wire.MirrorPrefix("us", peerName(i)), kvstore.CopyOptions{Tag: "scale"})
		r := kvstore.NewReader(kvstore.TLSDial(func() (*tls.Config, error) { return conf, nil }),
			func() []string { return []string{addr} }, sink, kvstore.ReaderOptions{
				Prefix: wire.ExportPrefix(peerName(i)), Gate: gate,
				Resume: []wire.Kind{wire.KindCluster, wire.KindHeartbeat, wire.KindNode},
				OnState: func(s kvstore.State) {
					if s.Synced && s.Connected && !done {
						done = true
						m.synced <- time.Now()
					}
					if s.Error != "" {
						t.Logf("%s: %s", peerName(i), s.Error)
					}
				},
			})
		wg.Go(func() { _ = r.Run(ctx) })
	}
	return m
}

// measureLatency changes rows at the source and looks when they are here.
func measureLatency(t *testing.T, src *source, dest *clientv3.Client) {
	arrived := make(chan time.Time, 100000)
	w := dest.Watch(t.Context(), wire.MirrorRoot, clientv3.WithPrefix())
	go func() {
		for resp := range w {
			now := time.Now()
			for range resp.Events {
				arrived <- now
			}
		}
	}()
	one := func() time.Duration {
		at := src.change(t, 1)
		return (<-arrived).Sub(at)
	}
	for range 10 {
		one()
	}
	var took []time.Duration
	for range 300 {
		took = append(took, one())
		time.Sleep(5 * time.Millisecond)
	}
	slices.Sort(took)
	t.Logf("one change: p50 %v, p99 %v", took[len(took)/2], took[len(took)*99/100])

	at := src.change(t, 10000)
	for range 10000 {
		<-arrived
	}
	t.Logf("burst of 10,000 changes: %v; RSS %s", time.Since(at), rss())

	fmt.Fprintln(src.in, "rate 1000 10")
	took = nil
	for range 10000 {
		<-arrived
	}
	line := src.line(t)
	t.Logf("1,000 changes/s for 10 s: source %s, all here %v after the last; RSS %s", line, time.Since(nanos(t, strings.Fields(line)[0])), rss())
}

func nanos(t *testing.T, s string) time.Time {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(0, n)
}

// source is the process that plays all the peers.
type source struct {
	scaleSource
	in  io.Writer
	out *bufio.Scanner
}

func startSource(t *testing.T) *source {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMirrorScale$", "-test.v")
	cmd.Env = append(os.Environ(), sourceEnv+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = r.Close(); _ = cmd.Wait() })
	s := &source{in: in, out: bufio.NewScanner(r)}
	s.line(t)
	b, err := os.ReadFile(filepath.Join(dir, "source.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s.scaleSource); err != nil {
		t.Fatal(err)
	}
	return s
}

// line is the next line that the source says to us.
func (s *source) line(t *testing.T) string {
	t.Helper()
	for s.out.Scan() {
		if l, ok := strings.CutPrefix(s.out.Text(), "@@ "); ok {
			return l
		}
	}
	t.Fatal("the source ended")
	return ""
}

// change makes n changes at the source and returns when it began.
func (s *source) change(t *testing.T, n int) time.Time {
	t.Helper()
	fmt.Fprintln(s.in, "change", n)
	return nanos(t, s.line(t))
}

func (s *source) own(t *testing.T) pki.Pair {
	p, err := pki.ParsePair([]byte(s.OwnCert), []byte(s.OwnKey))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serveScale is the source: one store, and a front for each peer.
func serveScale(t *testing.T, dir string) {
	s, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: filepath.Join(dir, "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	us, err := pki.NewCA("us", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.IssuePeer(us, "us", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, _ := own.KeyPEM()
	info := scaleSource{OwnCert: string(own.CertPEM()), OwnKey: string(key)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range scalePeers {
		name := peerName(i)
		if failed := kvstore.NewTarget(s.Client(), wire.ExportPrefix(name)).Apply(ctx, peerRows(i), nil); len(failed) > 0 {
			t.Fatal(failed)
		}
		ca, err := pki.NewCA(name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		srv, err := pki.IssueServer(ca, name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		trust := &pki.Trust{Server: srv, Peers: map[string][]*x509.Certificate{"us": {us.Cert}}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f := etcdserver.NewFront(name, s.Backend(), etcdserver.FrontOptions{Trust: func() *pki.Trust { return trust }})
		wg.Go(func() { _ = f.Serve(ctx, l) })
		info.Addresses = append(info.Addresses, l.Addr().String())
		info.CA = append(info.CA, string(pki.EncodeBundle([]*x509.Certificate{ca.Cert})))
	}
	b, _ := json.Marshal(info)
	if err := os.WriteFile(filepath.Join(dir, "source.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Println("\n@@ ready")
	obey(t, s.Client())
}

// obey does what is asked on standard input until it ends.
func obey(t *testing.T, c *clientv3.Client) {
	n := 0
	put := func() clientv3.Op {
		n++
		return clientv3.OpPut(wire.ExportPrefix(peerName(n%scalePeers))+wire.NodeTail(fmt.Sprintf("node-%03d", n/scalePeers%scaleNodes)).String(), fmt.Sprintf("%090d", n))
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		count, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "change":
			fmt.Printf("@@ %d\n", time.Now().UnixNano())
			for count > 0 {
				var ops []clientv3.Op
				for range min(count, 100) {
					ops = append(ops, put())
				}
				if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
					t.Fatal(err)
				}
				count -= len(ops)
			}
		case "rate":
			seconds, _ := strconv.Atoi(f[2])
			began := time.Now()
			for i := range count * seconds {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(count))))
				op := put()
				if _, err := c.Do(t.Context(), op); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Printf("@@ %d took %v\n", time.Now().UnixNano(), time.Since(began))
		}
	}
}

func countRows(t *testing.T, c *clientv3.Client) int64 {
	resp, err := c.Get(t.Context(), wire.MirrorRoot, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return resp.Count
}

// cpu is the processor time that this process has used.
func cpu(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the resident memory of this process: all, of it anonymous and from
// files, and the highest so far.
func rss() string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err.Error()
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		for _, k := range []string{"VmRSS", "VmHWM", "RssAnon", "RssFile"} {
			if v, ok := strings.CutPrefix(line, k+":"); ok {
				kb, _ := strconv.Atoi(strings.Fields(v)[0])
				out = append(out, fmt.Sprintf("%s %d MiB", k, kb/1024))
			}
		}
	}
	return strings.Join(out, ", ")
}

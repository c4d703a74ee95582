package serve

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

const zzPeers = 250

func zzName(i int) string { return fmt.Sprintf("peer%03d", i) }

func zzRows(i int) map[string]string {
	name := zzName(i)
	rows := map[string]string{
		"cluster":   string(wire.Cluster{Name: name, Product: "x", MinVersion: 1, MaxVersion: 1, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i))}}.Encode()),
		"heartbeat": string(wire.Heartbeat{Count: 1, At: time.Now()}.Encode()),
	}
	for _, k := range wire.Kinds() {
		if k != wire.KindSynced {
			rows[wire.SyncedTail(k).String()] = string(wire.Synced{Incarnation: "1"}.Encode())
		}
	}
	for n := range 100 {
		key := model.NodeKey{Cluster: name, Name: fmt.Sprintf("node-%03d", n)}
		rows[wire.NodeTail(key.Name).String()] = zzNode(i, n, 0)
	}
	for n := range 100 {
		id := wire.Identity{Cluster: name, Namespace: "default", NamespaceLabels: map[string]string{"kubernetes.io/metadata.name": "default"},
			Labels: map[string]string{"app": fmt.Sprintf("app-%d", n), "app.kubernetes.io/part-of": "shop", "pod-template-hash": "5d8e914657"}}
		rows[wire.IdentityTail("default", id.ID()).String()] = string(id.Encode())
		for e := range 10 {
			ip := netip.AddrFrom4([4]byte{10, byte(i), byte(n), byte(e + 2)})
			rows[wire.EndpointTail("default", id.ID(), ip).String()] = string(wire.Endpoint{Node: fmt.Sprintf("node-%03d", n), Ports: []wire.NamedPort{{Name: "http", Protocol: 6, Port: 8080}}}.Encode())
		}
	}
	return rows
}

func zzNode(i, n, v int) string {
	return string(wire.EncodeNode(model.Node{Internal: model.Addrs{V4: netip.AddrFrom4([4]byte{11, byte(i), byte(v % 200), byte(n + 1)})},
		PodCIDRs: model.Prefixes{V4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(n), 0}), 24)}, Encap: model.EncapAuto, VXLANPort: 8472, VNI: 7473}))
}

// TestZZSource: DIR, CA of us, name of us.
func TestZZSource(t *testing.T) {
	dir := os.Getenv("ZZ_DIR")
	if dir == "" {
		t.Skip()
	}
	us := os.Getenv("ZZ_US")
	caPEM, err := os.ReadFile(os.Getenv("ZZ_CA"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseBundle(caPEM)
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: filepath.Join(dir, "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	out, _ := os.Create(filepath.Join(dir, "peers.json"))
	for i := range zzPeers {
		name := zzName(i)
		if failed := kvstore.NewTarget(s.Client(), wire.ExportPrefix(name)).Apply(ctx, zzRows(i), nil); len(failed) > 0 {
			t.Fatal(failed)
		}
		pca, _ := pki.NewCA(name, time.Now())
		srv, _ := pki.IssueServer(pca, name, time.Now())
		trust := &pki.Trust{Server: srv, Peers: map[string][]*x509.Certificate{us: ca}}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f := etcdserver.NewFront(name, s.Backend(), etcdserver.FrontOptions{Trust: func() *pki.Trust { return trust }})
		wg.Go(func() { _ = f.Serve(ctx, l) })
		obj := map[string]any{"apiVersion": "clustermesh.io/v1alpha1", "kind": "Peer", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"endpoints": []string{l.Addr().String()}, "trust": map[string]any{"caBundle": string(pki.EncodeBundle([]*x509.Certificate{pca.Cert}))},
				"import": map[string]any{"podCIDRs": []string{fmt.Sprintf("10.%d.0.0/16", i)}}}}
		b, _ := json.Marshal(obj)
		out.Write(append(b, '\n'))
	}
	out.Close()
	fmt.Println("\n@@ ready")
	zzObey(t, s.Client())
}

func zzObey(t *testing.T, c *clientv3.Client) {
	n := 0
	put := func() clientv3.Op {
		n++
		i, k := n%zzPeers, n/zzPeers%100
		return clientv3.OpPut(wire.ExportPrefix(zzName(i))+wire.NodeTail(fmt.Sprintf("node-%03d", k)).String(), zzNode(i, k, n/25000+1))
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		if len(f) < 2 {
			continue
		}
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
			fmt.Printf("@@ done %d\n", time.Now().UnixNano())
		case "rate":
			seconds, _ := strconv.Atoi(f[2])
			began := time.Now()
			for i := range count * seconds {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(count))))
				if _, err := c.Do(t.Context(), put()); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Printf("@@ done %d\n", time.Now().UnixNano())
		}
	}
}

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
	"github.com/clustermesh/clustermesh/test/lab"
)

// hostile (invariants M3, M4): a peer that west was told to trust, and that claims what is not its
// own, sends garbage, and takes everything. What it may have is admitted, all else
// refused by reason and shown; nobody else notices, and it goes without
// a trace.
func (s *suite) hostile(t *testing.T) {
	n := node(t, s.m, "south-n1") // where it runs
	evil := etcdtest.New(t, "evil")
	evil.Trust("west", caOf(t, s.m.Clusters[0])...)
	endpoint := listenOn(t, n, evil, 7999)
	at := wire.ExportPrefix("evil")
	evil.Put(at+"cluster", string(wire.Cluster{Name: "evil", Product: "hostile"}.Encode()), at+"heartbeat", string(wire.Heartbeat{Count: 1}.Encode()))
	third := n.Addrs.V4.String() // a node of south, which west knows
	for name, value := range map[string]string{
		"honest":     nodeRow("172.18.66.1", "10.66.1.0/24"),
		"elsewhere":  nodeRow("172.18.66.2", "10.77.1.0/24"),
		"everything": nodeRow("172.18.66.3", "0.0.0.0/0"),
		"of-west":    nodeRow("172.18.66.4", "10.11.0.0/24"),
		"of-east":    nodeRow("172.18.66.5", "10.12.0.0/24"),
		"as-south":   nodeRow(third, "10.66.2.0/24"),
		"nowhere":    nodeRow("127.0.0.1", "10.66.3.0/24"),
		"garbage":    "\x01\xff\xff\xff garbage",
		"newer":      "\x63 from the future",
		"huge":       strings.Repeat("x", 300<<10),
	} {
		evil.Put(at+"node/"+name, value)
	}
	for _, k := range wire.Kinds() {
		evil.Put(at+wire.SyncedTail(k).String(), string(wire.Synced{Incarnation: "1"}.Encode()))
	}
	before := routes(t, node(t, s.m, "west-n1"))
	must(t, s.m.Clusters[0].Apply(t.Context(), fmt.Sprintf(`apiVersion: clustermesh.io/v1alpha1
kind: Peer
metadata: {name: evil}
spec:
  endpoints: ["%s"]
  trust: {caBundle: %q}
  import: {podCIDRs: ["10.66.0.0/16"]}
`, endpoint, string(evil.CA.CertPEM()))))
	eventually(t, 30*time.Second, func() error {
		got := refusedBy(t, node(t, s.m, "west-n1"), "evil")
		for reason, count := range map[string]int{"cidr-not-allowed": 4, "address-conflict": 1, "bad-address": 1, "bad-value": 1, "unknown-version": 1, "too-large": 1} {
			if got[reason] != count {
				return fmt.Errorf("west says that it refuses %v, want %d for %s", got, count, reason)
			}
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error { // the one honest node, and nothing else, is added
		var added []string
		for line := range strings.Lines(routes(t, node(t, s.m, "west-n1"))) {
			if line = strings.TrimSpace(line); !strings.Contains(before, line) {
				added = append(added, line)
			}
		}
		if len(added) != 1 || !strings.HasPrefix(added[0], "10.66.1.0/24 via 172.18.66.1 ") {
			return fmt.Errorf("routes that came with it: %q", added)
		}
		return nil
	})
	reachAll(t, s.m, s.pods)
	_, err := s.m.CLI(t.Context(), "disconnect", "--context", "west", "evil")
	must(t, err)
	eventually(t, 10*time.Second, func() error {
		if after := routes(t, node(t, s.m, "west-n1")); after != before {
			return fmt.Errorf("routes after it is gone:\n%s\nbefore:\n%s", after, before)
		}
		return nil
	})
}

// caOf are the certificates of a cluster's mesh CA.
func caOf(t *testing.T, c *lab.Cluster) []*x509.Certificate {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "get", "secret", "-n", "clustermesh-system", kube.SecretCA, "-o", `jsonpath={.data.tls\.crt}`)
	must(t, err)
	pem, err := base64.StdEncoding.DecodeString(out)
	must(t, err)
	bundle, err := pki.ParseBundle(pem)
	must(t, err)
	return bundle
}

func nodeRow(addr, pods string) string {
	n := model.Node{VXLANPort: 8472, VNI: 7473}
	n.Internal = n.Internal.Add(netip.MustParseAddr(addr))
	n.PodCIDRs = n.PodCIDRs.Add(netip.MustParsePrefix(pods))
	return string(wire.EncodeNode(n))
}

// listenOn serves a mesh API on a node's network, and returns where.
func listenOn(t *testing.T, n *lab.Node, m *etcdtest.Mesh, port int) string {
	t.Helper()
	ns, err := os.Open("/run/netns/" + n.Netns())
	must(t, err)
	defer ns.Close()
	endpoint := net.JoinHostPort(n.Addrs.V4.String(), fmt.Sprint(port))
	var l net.Listener
	must(t, nl.SpaceFd(int(ns.Fd())).Do(func() (err error) {
		l, err = net.Listen("tcp", endpoint)
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Front.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	return endpoint
}

// refusedBy is what a Peer's status says of refused rows, by reason.
func refusedBy(t *testing.T, n *lab.Node, peer string) map[string]int {
	t.Helper()
	var object struct {
		Status struct {
			Refused []struct {
				Reason string
				Count  int
			}
		}
	}
	must(t, json.Unmarshal([]byte(sh(t, n, "kubectl get peer "+peer+" -o json")), &object))
	out := map[string]int{}
	for _, r := range object.Status.Refused {
		out[r.Reason] = r.Count
	}
	return out
}

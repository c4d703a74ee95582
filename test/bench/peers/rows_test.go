package peers

import (
	"net/netip"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/mesh"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

type noStore struct{}

func (noStore) Count(wire.Kind) int { return 0 }
func (noStore) Size(string) int     { return -1 }

// TestAdmitted: as many peers as the benchmarks play are accepted side by side,
// and all that they send is admitted.
func TestAdmitted(t *testing.T) {
	const count = 250
	ca, err := pki.NewCA("peers", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var objects []kube.Peer
	for i := range count {
		p := Peer{Name: Name(i), Endpoint: "127.0.0.1:1", CA: string(ca.CertPEM())}
		objects = append(objects, kube.PeerRow(p.Object(i)))
	}
	own := mesh.Own{Cluster: "west", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	verdicts := mesh.Accept(own, objects)
	claims := mesh.NewClaims(own, func(string) {})
	for i := range count {
		v := verdicts[Name(i)]
		if !v.Usable() {
			t.Fatalf("%s: %v", Name(i), v.Err)
		}
		a := mesh.NewAdmission(v.Rules, claims, func() {}, noStore{})
		for key, value := range rows(i, Shape{Nodes: 3, Identities: 2, Endpoints: 9}, wire.Cluster{Name: Name(i)}) {
			row := []kvstore.Row{{Key: key, Value: []byte(value)}}
			if tail, err := wire.ParseTail(key); err != nil || tail.Kind != wire.KindSynced && len(a.Admit(row)) != 1 {
				t.Fatalf("%s of %s: %v, refused: %v", key, Name(i), err, a.Refused())
			}
		}
	}
}

func TestNodesDiffer(t *testing.T) {
	at := time.Unix(1, 2)
	a, b := Node(1, 2, 0, Stamp{7, at}), Node(1, 2, 1, Stamp{8, at})
	if a.Internal == b.Internal || a.PodCIDRs != b.PodCIDRs {
		t.Errorf("moving a node changes its addresses and nothing else: %+v, %+v", a, b)
	}
	if s := StampOf(b); s.Number != 8 || !s.At.Equal(at) {
		t.Errorf("stamp %+v", s)
	}
	seen := map[netip.Addr]bool{}
	for _, peer := range []int{0, 1, 249} {
		for _, node := range []int{0, 1, 8191} {
			for home := range 2 {
				for _, addr := range Node(peer, node, home, Stamp{}).Internal.All() {
					if seen[addr] {
						t.Errorf("peer %d, node %d, home %d: %v is taken", peer, node, home, addr)
					}
					seen[addr] = true
				}
			}
		}
	}
}

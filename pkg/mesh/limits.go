package mesh

import (
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Limits bound what a peer can make us keep.
type Limits struct {
	Rows  map[wire.Kind]int // rows of each kind
	Bytes int64             // keys and values of all rows together
}

// bytesPerPeer is far above what the rows of the largest cluster we design for
// take (500,000 endpoints of 100 bytes), and far below the store's quota, so
// that no peer can fill it alone.
const bytesPerPeer = 128 << 20

func limits(l v1alpha1.Limits) Limits {
	or := func(n, standard int) int {
		if n > 0 {
			return n
		}
		return standard
	}
	services := or(l.Services, 50_000)
	return Limits{
		Bytes: bytesPerPeer,
		Rows: map[wire.Kind]int{
			wire.KindCluster:   1,
			wire.KindHeartbeat: 1,
			wire.KindNode:      or(l.Nodes, 5_000),
			wire.KindIdentity:  or(l.Identities, 100_000),
			wire.KindEndpoint:  or(l.Endpoints, 500_000),
			wire.KindService:   services,
			wire.KindSlice:     2 * services, // large and dual-stack Services have several
			wire.KindExport:    services,
		},
	}
}

// maxValue is the size in bytes of the largest sane value of each kind.
func maxValue(k wire.Kind) int {
	switch k {
	case wire.KindHeartbeat:
		return 256
	case wire.KindNode:
		return 2 << 10
	case wire.KindEndpoint, wire.KindIdentity, wire.KindService, wire.KindExport:
		return 32 << 10
	}
	return wire.MaxValue // cluster, slice
}

// admitted are the kinds that are taken over from peers.
func admitted() []wire.Kind {
	return []wire.Kind{wire.KindCluster, wire.KindHeartbeat, wire.KindNode, wire.KindIdentity,
		wire.KindEndpoint, wire.KindService, wire.KindSlice, wire.KindExport}
}

// Package wire defines what clusters tell each other: the keys in etcd and the
// encoding of the rows behind them. It is pure; it neither reads nor writes
// etcd. Decoders take bytes from strangers: they never panic, never allocate
// more than the input's own size warrants, and refuse what is not canonical.
package wire

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Root of what a cluster exports; the next part of a key is its owner.
const Root = "/clustermesh/v1/"

// MirrorRoot is where an API server keeps the rows of its peers; the next parts
// are its own cluster and the peer.
const MirrorRoot = "/clustermesh/mirror/v1/"

// Kind is a sort of row.
type Kind string

// The kinds. See the row types of the same names for what each holds.
const (
	KindCluster   Kind = "cluster"
	KindHeartbeat Kind = "heartbeat"
	KindNode      Kind = "node"
	KindIdentity  Kind = "identity"
	KindEndpoint  Kind = "endpoint"
	KindService   Kind = "service"
	KindSlice     Kind = "slice"
	KindExport    Kind = "export"
	KindGrant     Kind = "grant"
	KindSynced    Kind = "synced"
)

// Kinds is every kind in the order in which a reader lists them: what a row
// refers to comes before it, and the synced marks, which say whether a missing
// row may be taken for a deleted one, come first.
func Kinds() []Kind {
	return []Kind{KindSynced, KindCluster, KindHeartbeat, KindNode, KindIdentity, KindEndpoint, KindService, KindSlice, KindExport, KindGrant}
}

// parts is how many path elements follow a kind.
var parts = map[Kind]int{
	KindCluster: 0, KindHeartbeat: 0, KindNode: 1, KindIdentity: 2, KindEndpoint: 3,
	KindService: 2, KindSlice: 2, KindExport: 2, KindGrant: 1, KindSynced: 1,
}

// ExportPrefix is the prefix of all rows that cluster exports, with a slash at the end.
func ExportPrefix(cluster string) string { return Root + cluster + "/" }

// MirrorPrefix is the prefix under which the API server of us keeps the rows of
// peer, with a slash at the end; of all peers if peer is empty.
func MirrorPrefix(us, peer string) string {
	if peer == "" {
		return MirrorRoot + us + "/"
	}
	return MirrorRoot + us + "/" + peer + "/"
}

// Tail is the part of a key behind the owner: kind and name.
type Tail struct {
	Kind Kind
	// Name is up to three path elements: node; namespace and name; namespace,
	// identity and address.
	Name [3]string
}

// String is the tail as it stands in a key.
func (t Tail) String() string {
	n := parts[t.Kind]
	if n == 0 {
		return string(t.Kind)
	}
	return string(t.Kind) + "/" + strings.Join(t.Name[:n], "/")
}

// KindPrefix is what the tails of all rows of a kind begin with.
func KindPrefix(k Kind) string {
	if parts[k] == 0 {
		return string(k)
	}
	return string(k) + "/"
}

// ParseTail takes apart the part of a key behind the owner.
func ParseTail(s string) (Tail, error) {
	kind, rest, more := strings.Cut(s, "/")
	t := Tail{Kind: Kind(kind)}
	want, known := parts[t.Kind]
	if !known {
		return Tail{}, &UnknownKindError{Kind: kind}
	}
	if !more {
		if want != 0 {
			return Tail{}, fmt.Errorf("key %.200q: %s takes %d names", s, kind, want)
		}
		return t, nil
	}
	names := strings.Split(rest, "/")
	if len(names) != want {
		return Tail{}, fmt.Errorf("key %.200q: %s takes %d names", s, kind, want)
	}
	for i, n := range names {
		if !validName(n) {
			return Tail{}, fmt.Errorf("key %.200q: name %.80q is not 1 to 253 characters of a-z, 0-9, '-', '.' or ':'", s, n)
		}
		t.Name[i] = n
	}
	return t, nil
}

// UnknownKindError is what a row of a kind from a newer version gives: it is
// skipped, not refused.
type UnknownKindError struct{ Kind string }

func (e *UnknownKindError) Error() string { return fmt.Sprintf("unknown kind %.40q", e.Kind) }

// validName accepts what Kubernetes object names, identities and addresses are
// made of.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// ValidClusterName tells whether s is an RFC 1123 label, which cluster names are.
func ValidClusterName(s string) bool {
	return len(s) <= 63 && validName(s) && !strings.ContainsAny(s, ".:") && s[0] != '-' && s[len(s)-1] != '-'
}

// The tails of single rows.

func ClusterTail() Tail             { return Tail{Kind: KindCluster} }
func HeartbeatTail() Tail           { return Tail{Kind: KindHeartbeat} }
func NodeTail(name string) Tail     { return Tail{KindNode, [3]string{name}} }
func GrantTail(peer string) Tail    { return Tail{KindGrant, [3]string{peer}} }
func SyncedTail(k Kind) Tail        { return Tail{KindSynced, [3]string{string(k)}} }
func ServiceTail(ns, n string) Tail { return Tail{KindService, [3]string{ns, n}} }
func SliceTail(ns, n string) Tail   { return Tail{KindSlice, [3]string{ns, n}} }
func ExportTail(ns, n string) Tail  { return Tail{KindExport, [3]string{ns, n}} }

// IdentityTail names an identity row; id is written as 16 hexadecimal digits.
func IdentityTail(ns string, id uint64) Tail {
	return Tail{KindIdentity, [3]string{ns, FormatID(id)}}
}

// EndpointTail names an endpoint row.
func EndpointTail(ns string, id uint64, ip netip.Addr) Tail {
	return Tail{KindEndpoint, [3]string{ns, FormatID(id), ip.String()}}
}

// FormatID writes an identity as it stands in keys.
func FormatID(id uint64) string { return fmt.Sprintf("%016x", id) }

// ParseID reads what FormatID wrote, and nothing else.
func ParseID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil || FormatID(id) != s {
		return 0, fmt.Errorf("identity %.40q is not 16 hexadecimal digits", s)
	}
	return id, nil
}

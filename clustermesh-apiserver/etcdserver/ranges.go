package etcdserver

import (
	"bytes"

	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// readable returns the prefixes that id may read in the store of cluster. Each
// ends in a slash, so that west does not cover west0.
func readable(cluster string, id pki.Identity) [][]byte {
	switch id.Role {
	case pki.RolePeer:
		return [][]byte{[]byte(wire.ExportPrefix(cluster))}
	case pki.RoleAgent:
		return [][]byte{[]byte(wire.ExportPrefix(cluster)), []byte(wire.MirrorPrefix(cluster, ""))}
	}
	return nil
}

// within tells whether an etcd range lies in one of the prefixes. An empty end
// means the single key; the end "\x00" means all keys from key on, and so never
// lies within anything; an empty or reversed range is refused as well.
func within(prefixes [][]byte, key, end []byte) bool {
	for _, p := range prefixes {
		if !bytes.HasPrefix(key, p) {
			continue
		}
		if len(end) == 0 {
			return true
		}
		if bytes.Compare(key, end) < 0 && bytes.Compare(end, prefixEnd(p)) <= 0 {
			return true
		}
	}
	return false
}

// prefixEnd is the first key behind all keys that begin with p, which ends in a slash.
func prefixEnd(p []byte) []byte {
	end := bytes.Clone(p)
	end[len(end)-1]++
	return end
}

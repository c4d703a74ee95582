package etcdserver

import (
	"bytes"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/pki"
)

var (
	aPeer   = pki.Identity{Role: pki.RolePeer, Name: "east"}
	anAgent = pki.Identity{Role: pki.RoleAgent, Name: pki.AgentName}
)

func TestWithin(t *testing.T) {
	const own, mirror = "/clustermesh/v1/west/", "/clustermesh/mirror/v1/west/"
	for _, tt := range []struct {
		name     string
		key, end string
		peer     bool
		agent    bool
	}{
		{"whole prefix", own, "/clustermesh/v1/west0", true, true},
		{"kind", own + "node/", own + "node0", true, true},
		{"single key", own + "cluster", "", true, true},
		{"prefix as a key", own, "", true, true},
		{"last key of the prefix", own + "\xff", "/clustermesh/v1/west0", true, true},
		{"without the slash", "/clustermesh/v1/west", "/clustermesh/v1/wesu", false, false},
		{"without the slash, single", "/clustermesh/v1/west", "", false, false},
		{"cluster of a longer name", "/clustermesh/v1/west0/", "/clustermesh/v1/west00", false, false},
		{"into a longer name", own, "/clustermesh/v1/west00", false, false},
		{"another cluster", "/clustermesh/v1/north/", "/clustermesh/v1/north0", false, false},
		{"mirror", mirror, "/clustermesh/mirror/v1/west0", false, true},
		{"one peer's mirror", mirror + "east/", mirror + "east0", false, true},
		{"mirror of another cluster", "/clustermesh/mirror/v1/north/", "/clustermesh/mirror/v1/north0", false, false},
		{"from mirror into own", mirror, "/clustermesh/v1/west0", false, false},
		{"from key", own, "\x00", false, false},
		{"everything", "\x00", "\x00", false, false},
		{"no key", "", "", false, false},
		{"no key with an end", "", own, false, false},
		{"from before", "/clustermesh/v1/wes", "/clustermesh/v1/west0", false, false},
		{"end behind", own, "/clustermesh/v1/west1", false, false},
		{"end far behind", own, "\xff", false, false},
		{"reversed", own + "b", own + "a", false, false},
		{"empty", own + "a", own + "a", false, false},
		{"dots", own + "../north/node/", own + "../north/node0", true, true}, // etcd knows no paths: a key of ours
	} {
		t.Run(tt.name, func(t *testing.T) {
			for id, want := range map[pki.Identity]bool{aPeer: tt.peer, anAgent: tt.agent, {}: false, {Role: "else"}: false} {
				if got := within(readable("west", id), []byte(tt.key), []byte(tt.end)); got != want {
					t.Errorf("%v: %v, want %v", id, got, want)
				}
			}
		})
	}
}

// FuzzWithin looks for a range that is let through and holds a key outside.
func FuzzWithin(f *testing.F) {
	f.Add([]byte("/clustermesh/v1/west/"), []byte("/clustermesh/v1/west0"), []byte("/clustermesh/v1/west/a"))
	f.Add([]byte("/clustermesh/v1/west/"), []byte("\x00"), []byte("/z"))
	f.Add([]byte("/clustermesh/v1/west/a"), []byte{}, []byte("/clustermesh/v1/west/a"))
	f.Add([]byte("/clustermesh/v1/west"), []byte("/clustermesh/v1/west1"), []byte("/clustermesh/v1/west0"))
	f.Fuzz(func(t *testing.T, key, end, probe []byte) {
		for _, id := range []pki.Identity{aPeer, anAgent} {
			prefixes := readable("west", id)
			if !within(prefixes, key, end) || !inRange(key, end, probe) {
				continue
			}
			ok := false
			for _, p := range prefixes {
				ok = ok || bytes.HasPrefix(probe, p)
			}
			if !ok {
				t.Errorf("%v may read %q to %q, which holds %q", id, key, end, probe)
			}
		}
	})
}

// inRange is what etcd takes a range for (rpc.proto, RangeRequest.range_end).
func inRange(key, end, probe []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, probe)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(probe, key) >= 0
	}
	return bytes.Compare(probe, key) >= 0 && bytes.Compare(probe, end) < 0
}

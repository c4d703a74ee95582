package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

var ourselves = Own{Cluster: "us", PodCIDRs: nets("10.1.0.0/16", "fd00:1::/48"), ServiceCIDRs: nets("10.96.0.0/16")}

func nets(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// east may announce pods in 10.2/16 and fd00:2::/48.
func east() *Rules {
	return &Rules{Peer: "east", PodCIDRs: nets("10.2.0.0/16", "fd00:2::/48"), Limits: limits(noLimits)}
}

// node is a node's row: name, addresses and pod ranges separated by spaces.
func node(name, text string) kvstore.Row {
	n := model.Node{Key: model.NodeKey{Cluster: "any", Name: name}, Encap: model.EncapAuto, VXLANPort: 8472, VNI: 7473}
	for _, s := range strings.Fields(text) {
		if p, err := netip.ParsePrefix(s); err == nil {
			n.PodCIDRs = n.PodCIDRs.Add(p)
			continue
		}
		n.Internal = n.Internal.Add(netip.MustParseAddr(s))
	}
	return kvstore.Row{Key: wire.NodeTail(name).String(), Value: wire.EncodeNode(n)}
}

// rawNode is a node's row with field 5 or 6 (pod range) as given, which the
// encoder would not write.
func rawNode(name string, field byte, value ...byte) kvstore.Row {
	v := []byte{wire.Version, 1<<3 | 2, 4, 192, 0, 2, 9, field<<3 | 2, byte(len(value))}
	return kvstore.Row{Key: wire.NodeTail(name).String(), Value: append(v, value...)}
}

func identity(cluster, ns string, id uint64) kvstore.Row {
	i := wire.Identity{Cluster: cluster, Namespace: ns, Labels: map[string]string{"app": "web"}}
	if id == 0 {
		id = i.ID()
	}
	return kvstore.Row{Key: wire.IdentityTail(ns, id).String(), Value: i.Encode()}
}

func endpoint(ip string) kvstore.Row {
	return kvstore.Row{Key: wire.EndpointTail("default", 7, netip.MustParseAddr(ip)).String(), Value: wire.Endpoint{Node: "n1"}.Encode()}
}

func header(name string) kvstore.Row {
	return kvstore.Row{Key: "cluster", Value: wire.Cluster{Name: name}.Encode()}
}

// TestHostileRows: invariant M3.
func TestHostileRows(t *testing.T) {
	huge := strings.Repeat("x", 300<<10)
	slice := func(ip string) kvstore.Row {
		s := wire.Slice{Service: "web", Endpoints: []wire.SliceEndpoint{{Addr: netip.MustParseAddr(ip), Ready: true}}}
		return kvstore.Row{Key: wire.SliceTail("default", "web-1").String(), Value: s.Encode()}
	}
	for name, c := range map[string]struct {
		row  kvstore.Row
		want Reason
	}{
		"node":                                     {node("n1", "192.0.2.1 2001:db8::1 10.2.1.0/24 fd00:2:0:1::/64"), ""},
		"node without pod range":                   {node("n1", "192.0.2.1"), ""},
		"node with all that is allowed":            {node("n1", "192.0.2.1 10.2.0.0/16"), ""},
		"cluster":                                  {header("east"), ""},
		"heartbeat":                                {kvstore.Row{Key: "heartbeat", Value: wire.Heartbeat{Count: 1}.Encode()}, ""},
		"identity":                                 {identity("east", "default", 0), ""},
		"endpoint":                                 {endpoint("10.2.1.5"), ""},
		"slice":                                    {slice("10.2.1.5"), ""},
		"cluster that names another":               {header("west"), ForeignCluster},
		"identity of another cluster":              {identity("west", "default", 0), ForeignCluster},
		"identity with a number of its own":        {identity("east", "default", 42), IdentityMismatch},
		"node outside of what Peer allows":         {node("n1", "192.0.2.1 10.7.1.0/24"), CIDRNotAllowed},
		"node with one family outside":             {node("n1", "192.0.2.1 10.2.1.0/24 fd00:9::/64"), CIDRNotAllowed},
		"node with everything":                     {node("n1", "192.0.2.1 0.0.0.0/0"), CIDRNotAllowed},
		"node with all of IPv6":                    {node("n1", "192.0.2.1 ::/0"), CIDRNotAllowed},
		"node wider than allowed":                  {node("n1", "192.0.2.1 10.2.0.0/15"), CIDRNotAllowed},
		"node with our own pod range":              {node("n1", "192.0.2.1 10.1.3.0/24"), CIDRNotAllowed},
		"node with our services":                   {node("n1", "192.0.2.1 10.96.0.0/24"), CIDRNotAllowed},
		"node with a third cluster's pod range":    {node("n1", "192.0.2.1 10.3.3.0/24"), CIDRNotAllowed},
		"endpoint outside of what Peer allows":     {endpoint("10.3.1.5"), CIDRNotAllowed},
		"endpoint in our own range":                {endpoint("10.1.1.5"), CIDRNotAllowed},
		"slice with a backend outside":             {slice("10.1.1.5"), CIDRNotAllowed},
		"node at our own node's address":           {node("n1", "198.51.100.1 10.2.1.0/24"), AddressConflict},
		"node at a third cluster's node's address": {node("n1", "203.0.113.1 10.2.1.0/24"), AddressConflict},
		"node inside our own pod range":            {node("n1", "10.1.0.9 10.2.1.0/24"), AddressConflict},
		"node inside our services":                 {node("n1", "10.96.0.9 10.2.1.0/24"), AddressConflict},
		"node inside a third cluster's pod range":  {node("n1", "10.3.0.9 10.2.1.0/24"), AddressConflict},
		"node inside its own pod range":            {node("n1", "10.2.9.9 10.2.1.0/24"), AddressConflict},
		"node at loopback":                         {node("n1", "127.0.0.1"), BadAddress},
		"node at IPv6 loopback":                    {node("n1", "::1"), BadAddress},
		"node at a multicast address":              {node("n1", "224.0.0.5"), BadAddress},
		"node at an IPv6 multicast address":        {node("n1", "ff02::1"), BadAddress},
		"node at a link-local address":             {node("n1", "169.254.1.1"), BadAddress},
		"node at an IPv6 link-local address":       {node("n1", "fe80::1"), BadAddress},
		"node at the broadcast address":            {node("n1", "255.255.255.255"), BadAddress},
		"node at an unspecified address":           {node("n1", "0.0.0.0"), BadAddress},
		"node at an unspecified IPv6 address":      {node("n1", "::"), BadAddress},
		"node at this network":                     {node("n1", "0.1.2.3"), BadAddress},
		"node with host bits":                      {rawNode("n1", 5, 10, 2, 1, 1, 24), BadValue},
		"node with a mask of 33 bits":              {rawNode("n1", 5, 10, 2, 1, 0, 33), BadValue},
		"node with IPv4 in the IPv6 field":         {rawNode("n1", 6, 10, 2, 1, 0, 24), BadValue},
		"node with half a prefix":                  {rawNode("n1", 5, 10, 2), BadValue},
		"node without address":                     {kvstore.Row{Key: "node/n1", Value: []byte{wire.Version}}, BadValue},
		"garbage bytes":                            {kvstore.Row{Key: "node/n1", Value: []byte("\x01\xff\xff\xff\xff")}, BadValue},
		"empty value":                              {kvstore.Row{Key: "node/n1"}, BadValue},
		"version of the future":                    {kvstore.Row{Key: "node/n1", Value: []byte{200, 1}}, UnknownVersion},
		"huge node":                                {kvstore.Row{Key: "node/n1", Value: append(node("n1", "192.0.2.1").Value, huge...)}, TooLarge},
		"huge slice":                               {kvstore.Row{Key: "slice/default/web-1", Value: []byte(huge)}, TooLarge},
		"huge cluster row":                         {kvstore.Row{Key: "cluster", Value: []byte(huge)}, TooLarge},
		"key with a name too much":                 {kvstore.Row{Key: "node/a/b", Value: node("a", "192.0.2.1").Value}, BadKey},
		"key without name":                         {kvstore.Row{Key: "node/", Value: node("a", "192.0.2.1").Value}, BadKey},
		"key with capitals":                        {kvstore.Row{Key: "node/A", Value: node("a", "192.0.2.1").Value}, BadKey},
		"key with control characters":              {kvstore.Row{Key: "node/a\x1b[2J", Value: node("a", "192.0.2.1").Value}, BadKey},
		"huge key":                                 {kvstore.Row{Key: "node/" + huge, Value: node("a", "192.0.2.1").Value}, BadKey},
		"endpoint with an address in another form": {kvstore.Row{Key: "endpoint/default/0000000000000007/fd00:2:0::5", Value: endpoint("10.2.0.1").Value}, BadKey},
		"endpoint with a number in another form":   {kvstore.Row{Key: "endpoint/default/7/10.2.0.1", Value: endpoint("10.2.0.1").Value}, BadKey},
		"endpoint that is an IPv4-mapped address":  {kvstore.Row{Key: "endpoint/default/0000000000000007/::ffff:10.2.0.1", Value: endpoint("10.2.0.1").Value}, BadKey},
		"garbage in an endpoint":                   {kvstore.Row{Key: endpoint("10.2.0.1").Key, Value: []byte{1, 0xff}}, BadValue},
		"garbage in a service":                     {kvstore.Row{Key: "service/default/web", Value: []byte{1, 0xff}}, BadValue},
		"garbage in an export":                     {kvstore.Row{Key: "export/default/web", Value: []byte{1, 0xff}}, BadValue},
		"export of no known type":                  {kvstore.Row{Key: "export/default/web", Value: wire.Export{CreatedMilli: 1, Type: "Any", IPFamilies: []string{"IPv4"}}.Encode()}, BadValue},
		"export under no Service's name":           {kvstore.Row{Key: "export/default/a.b", Value: wire.Export{CreatedMilli: 1, Type: "Headless", IPFamilies: []string{"IPv4"}}.Encode()}, BadValue},
		"garbage in the heartbeat":                 {kvstore.Row{Key: "heartbeat", Value: []byte{1, 0xff}}, BadValue},
		"identity whose labels are not in order":   {kvstore.Row{Key: identity("east", "default", 0).Key, Value: append(identity("east", "default", 0).Value, 4<<3|2, 1, 'a', 4<<3|2, 1, 'b')}, BadValue},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.admit("west", node("w1", "203.0.113.1 10.3.1.0/24"))
			if got := w.admit("east", c.row); got != c.want {
				t.Errorf("refused for %q, want %q: %+v", got, c.want, w.peers["east"].Refused())
			}
			if len(w.peers["west"].Refused()) != 0 {
				t.Error("another peer is affected:", w.peers["west"].Refused())
			}
		})
	}
}

func TestUnknownKindsAreSkipped(t *testing.T) {
	w := newWorld()
	for _, key := range []string{"quux/a", "grant/us", "synced/node"} {
		if out := w.peers["east"].Admit([]kvstore.Row{{Key: key, Value: []byte{1}}}); len(out) != 0 {
			t.Errorf("%s is admitted", key)
		}
	}
	if r := w.peers["east"].Refused(); r != nil {
		t.Error("and they are not refused either:", r)
	}
}

// TestRefusedIsPrintable: what is shown of a refused row does nothing to a terminal.
func TestRefusedIsPrintable(t *testing.T) {
	w := newWorld()
	w.peers["east"].Admit([]kvstore.Row{{Key: "node/\x1b[2J\u009b\xff", Value: []byte{1}}})
	r := w.peers["east"].Refused()
	if len(r) != 1 || r[0].Example != "node/·[2J·\ufffd" {
		t.Errorf("shown: %+v", r)
	}
}

func TestNamespaces(t *testing.T) {
	r := east()
	r.Namespaces = []string{"default"}
	a := NewAdmission(r, NewClaims(ourselves, func(string) {}), func() {}, noStore{})
	rows := []kvstore.Row{identity("east", "default", 0), identity("east", "other", 0)}
	if out := a.Admit(slices.Clone(rows)); len(out) != 1 || out[0].Key != rows[0].Key || a.Refused() != nil {
		t.Errorf("admitted %d rows, refused %v; want the one of namespace default, and no complaint", len(out), a.Refused())
	}
}

// world is two peers, east and west, and a node of ours.
type world struct {
	claims *Claims
	peers  map[string]*Admission
	again  map[string]bool // peers that have to be listed again
}

func newWorld() *world {
	w := &world{peers: map[string]*Admission{}, again: map[string]bool{}}
	w.claims = NewClaims(ourselves, func(p string) { w.again[p] = true })
	w.claims.SetOwnNodes(addrs("198.51.100.1", "198.51.100.2"))
	west := &Rules{Peer: "west", PodCIDRs: nets("10.3.0.0/16"), Limits: limits(noLimits)}
	for _, r := range []*Rules{east(), west} {
		w.peers[r.Peer] = NewAdmission(r, w.claims, func() { w.again[r.Peer] = true }, noStore{})
	}
	return w
}

// admit returns why a row is refused, or nothing.
func (w *world) admit(peer string, row kvstore.Row) Reason {
	a := w.peers[peer]
	before := map[string]int64{}
	for _, r := range a.Refused() {
		before[r.Reason] = r.Count
	}
	if len(a.Admit([]kvstore.Row{row})) == 1 {
		return ""
	}
	for _, r := range a.Refused() {
		if r.Count > before[r.Reason] {
			return Reason(r.Reason)
		}
	}
	return "none at all"
}

type noStore struct{}

func (noStore) Count(wire.Kind) int { return 0 }
func (noStore) Size(string) int     { return -1 }

// run plays the changes of one peer's nodes as its link would: events, and a
// new list whenever one is asked for. It returns the nodes that are admitted.
func (w *world) run(t *testing.T, peer string, changes []change) []string {
	t.Helper()
	source, mirror := map[string]kvstore.Row{}, map[string]bool{}
	for _, c := range changes {
		key := "node/" + c.name
		if c.text == "" {
			delete(source, key)
			delete(mirror, key)
			w.peers[peer].Gone(wire.KindNode, []string{key})
		} else {
			source[key] = node(c.name, c.text)
			mirror[key] = len(w.peers[peer].Admit([]kvstore.Row{source[key]})) == 1
		}
		for w.again[peer] {
			w.again[peer] = false
			mirror = w.list(peer, source)
		}
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(mirror)) {
		if mirror[key] {
			out = append(out, strings.TrimPrefix(key, "node/"))
		}
	}
	return out
}

func (w *world) list(peer string, source map[string]kvstore.Row) map[string]bool {
	mirror := map[string]bool{}
	w.peers[peer].Begin(wire.KindNode, true)
	for _, key := range slices.Sorted(maps.Keys(source)) {
		mirror[key] = len(w.peers[peer].Admit([]kvstore.Row{source[key]})) == 1
	}
	w.peers[peer].End(wire.KindNode, true)
	return mirror
}

// change sets a node, or deletes it if text is empty.
type change struct{ name, text string }

// Whoever comes first: the smaller name wins, and when it goes the other one is
// admitted.
func TestConflictsInsideAPeer(t *testing.T) {
	for name, c := range map[string]struct {
		changes []change
		want    []string
		refused int64
	}{
		"two nodes, one pod range":                          {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}}, []string{"a"}, 1},
		"the winner comes second":                           {[]change{{"b", "192.0.2.2 10.2.1.0/24"}, {"a", "192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 1},
		"a wider range":                                     {[]change{{"b", "192.0.2.2 10.2.0.0/16"}, {"a", "192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 1},
		"a narrower range":                                  {[]change{{"b", "192.0.2.2 10.2.1.128/25"}, {"a", "192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 1},
		"one address":                                       {[]change{{"b", "192.0.2.1 10.2.2.0/24"}, {"a", "192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 1},
		"the winner goes":                                   {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}, {"a", ""}}, []string{"b"}, 0},
		"the winner gets another range":                     {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}, {"a", "192.0.2.1 10.2.9.0/24"}}, []string{"a", "b"}, 0},
		"the winner gets another address":                   {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.1 10.2.2.0/24"}, {"a", "192.0.2.7 10.2.1.0/24"}}, []string{"a", "b"}, 0},
		"the loser goes":                                    {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}, {"b", ""}}, []string{"a"}, 0},
		"the loser gets another range":                      {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.2.0/24"}}, []string{"a", "b"}, 0},
		"three, and the middle one mended":                  {[]change{{"c", "192.0.2.3 10.2.1.0/24"}, {"b", "192.0.2.2 10.2.1.0/24"}, {"a", "192.0.2.1 10.2.1.0/24"}, {"a", ""}}, []string{"b"}, 1},
		"the same row again":                                {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"a", "192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 0},
		"internal is external":                              {[]change{{"a", "192.0.2.1 192.0.2.1 10.2.1.0/24"}}, []string{"a"}, 0},
		"a node made anew under another name, its end last": {[]change{{"a", "192.0.2.1 10.2.1.0/24"}, {"b", "192.0.2.1 10.2.1.0/24"}, {"a", ""}}, []string{"b"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			if d := cmp.Diff(c.want, w.run(t, "east", c.changes)); d != "" {
				t.Error(d)
			}
			var refused int64
			for _, r := range w.peers["east"].Refused() {
				refused += r.Count
			}
			if refused != c.refused {
				t.Errorf("%d refused, want %d: %+v", refused, c.refused, w.peers["east"].Refused())
			}
		})
	}
}

// The outcome of any set of nodes is that of a list of them, in whatever order
// they came and went.
func TestOrderDoesNotMatter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		var changes []change
		final := map[string]kvstore.Row{}
		for range 30 {
			name := string(rune('a' + rng.IntN(6)))
			c := change{name: name}
			if rng.IntN(4) > 0 {
				c.text = fmt.Sprintf("192.0.2.%d 10.2.%d.0/%d", rng.IntN(4)+1, rng.IntN(4), 22+rng.IntN(3))
				c.text = strings.Replace(c.text, c.text[strings.Index(c.text, " ")+1:], netip.MustParsePrefix(c.text[strings.Index(c.text, " ")+1:]).Masked().String(), 1)
			}
			changes = append(changes, c)
			if delete(final, name); c.text != "" {
				final[name] = node(name, c.text)
			}
		}
		got := newWorld().run(t, "east", changes)
		var inOrder []change
		for _, name := range slices.Sorted(maps.Keys(final)) {
			for _, c := range slices.Backward(changes) {
				if c.name == name {
					inOrder = append(inOrder, c)
					break
				}
			}
		}
		if d := cmp.Diff(newWorld().run(t, "east", inOrder), got); d != "" {
			t.Fatalf("round %d: %v\n%s", round, changes, d)
		}
	}
}

// Between peers nobody takes what another one has (invariant M4); what becomes
// free goes to who waits for it.
func TestConflictsBetweenPeers(t *testing.T) {
	w := newWorld()
	if r := w.admit("west", node("w1", "192.0.2.1 10.3.1.0/24")); r != "" {
		t.Fatal(r)
	}
	if r := w.admit("east", node("e1", "192.0.2.1 10.2.1.0/24")); r != AddressConflict {
		t.Fatalf("refused for %q", r)
	}
	if r := w.admit("west", node("w1", "192.0.2.1 10.3.2.0/24")); r != "" || w.again["east"] {
		t.Fatalf("west's own change is refused for %q, or wakes east", r)
	}
	w.peers["west"].Gone(wire.KindNode, []string{"node/w1"})
	if !w.again["east"] {
		t.Fatal("east is not listed again though its address is free")
	}
	if m := w.list("east", map[string]kvstore.Row{"node/e1": node("e1", "192.0.2.1 10.2.1.0/24")}); !m["node/e1"] {
		t.Fatal("east's node is still refused")
	}
	if r := w.admit("west", node("w1", "192.0.2.1 10.3.1.0/24")); r != AddressConflict {
		t.Fatalf("west gets it back for %q", r)
	}
	w.claims.Close("east")
	if !w.again["west"] {
		t.Fatal("west is not listed again though east was removed")
	}
}

func TestOwnNodesComeAndGo(t *testing.T) {
	w := newWorld()
	rows := map[string]kvstore.Row{"node/e1": node("e1", "198.51.100.9 10.2.1.0/24")}
	if m := w.list("east", rows); !m["node/e1"] {
		t.Fatal("refused")
	}
	w.claims.SetOwnNodes(addrs("198.51.100.9"))
	if !w.again["east"] {
		t.Fatal("not listed again though the address is ours now")
	}
	if m := w.list("east", rows); m["node/e1"] {
		t.Fatal("a peer has an address of ours")
	}
	w.again["east"] = false
	w.claims.SetOwnNodes(nil)
	if !w.again["east"] {
		t.Fatal("not listed again though the address is free")
	}
	if w.again["west"] {
		t.Fatal("west has nothing to do with it")
	}
}

// A pod range that a Peer allows may still cover a node of ours: never route that.
func TestPodRangeOverOurNode(t *testing.T) {
	w := newWorld()
	w.claims.SetOwnNodes(addrs("10.2.1.7"))
	if r := w.admit("east", node("e1", "192.0.2.1 10.2.1.0/24")); r != CIDROverlap {
		t.Fatalf("refused for %q", r)
	}
	w.claims.SetOwnNodes(nil)
	if !w.again["east"] {
		t.Fatal("not listed again")
	}
}

// A list that is given up halfway leaves nothing behind.
func TestListGivenUp(t *testing.T) {
	w := newWorld()
	w.peers["east"].Begin(wire.KindNode, true)
	w.admit("east", node("ghost", "192.0.2.66 10.2.6.0/24"))
	w.list("east", map[string]kvstore.Row{})
	if r := w.admit("west", node("w1", "192.0.2.66 10.3.1.0/24")); r != "" {
		t.Fatalf("refused for %q", r)
	}
}

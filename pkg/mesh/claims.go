package mesh

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Claims is who has which node address and pod range. It is shared by all
// peers and is safe for concurrent use.
//
// Our own nodes always win. Among peers the first one keeps what it has, so no
// peer can take anything from another. Within a peer lists go in the order of
// names, so the smaller name wins; whenever it may have come out otherwise, or
// something that others wait for becomes free, the peers concerned are listed
// again, which makes the outcome independent of the order of events.
type Claims struct {
	own    Own
	relist func(peer string) // must not block

	mu       sync.Mutex
	ownNodes []netip.Addr          // guarded by mu: sorted
	holders  map[netip.Addr]string // guarded by mu: address → peer
	books    map[string]*books     // guarded by mu: by peer
	ranges   []owned               // guarded by mu: pod ranges of all, and our Services'; no node may be inside
}

// NewClaims returns claims of nobody. relist is called, with no lock held, for
// peers whose nodes have to be judged again.
func NewClaims(own Own, relist func(peer string)) *Claims {
	return &Claims{own: own, relist: relist, holders: map[netip.Addr]string{}, books: map[string]*books{}, ranges: own.ranges()}
}

// SetOwnNodes tells the addresses of our own nodes.
func (c *Claims) SetOwnNodes(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	c.mu.Lock()
	old := c.ownNodes
	c.ownNodes = addrs
	var again []string
	for name, b := range c.books {
		if b.touchedBy(symmetricDifference(old, addrs)) {
			again = append(again, name)
		}
	}
	c.mu.Unlock()
	c.wake(again)
}

// someAddrs returns one address of each of at most n nodes of a peer, others at
// each call where there are more.
func (c *Claims) someAddrs(peer string, n int) []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.books[peer]
	if b == nil {
		return nil
	}
	var out []netip.Addr
	for _, claim := range b.current().nodes { // in random order
		if addrs := claim.addrs(); len(addrs) > 0 && len(out) < n {
			out = append(out, addrs[0])
		}
	}
	return out
}

// Open begins the claims of a peer, or changes its rules.
func (c *Claims) Open(r *Rules) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.books[r.Peer] == nil {
		c.books[r.Peer] = &books{now: newBook()}
	}
	c.books[r.Peer].ranges = r.PodCIDRs
	c.rangesLocked()
}

func (c *Claims) rangesLocked() {
	c.ranges = c.own.ranges()
	for name, b := range c.books {
		for _, p := range b.ranges {
			c.ranges = append(c.ranges, owned{prefix: p, owner: "the pod ranges of Peer " + name})
		}
	}
}

// Close ends the claims of a peer that is gone.
func (c *Claims) Close(peer string) {
	c.mu.Lock()
	b := c.books[peer]
	delete(c.books, peer)
	var again []string
	if b != nil {
		again = c.releaseLocked(peer, b.addrs())
		c.rangesLocked()
	}
	c.mu.Unlock()
	c.wake(again)
}

// BeginList begins a full list of a peer's nodes.
func (c *Claims) BeginList(peer string) {
	c.mu.Lock()
	var again []string
	if b := c.books[peer]; b != nil {
		before := b.addrs()
		b.next = newBook()
		again = c.releaseLocked(peer, before) // of a list that was given up
	}
	c.mu.Unlock()
	c.wake(again)
}

// EndList ends it. If complete is false, nodes that it lacked keep their claims.
func (c *Claims) EndList(peer string, complete bool) {
	c.mu.Lock()
	b := c.books[peer]
	if b == nil || b.next == nil {
		c.mu.Unlock()
		return
	}
	before := b.addrs()
	if !complete {
		b.next.inherit(b.now)
	}
	b.now, b.next = b.next, nil
	again := c.releaseLocked(peer, before)
	c.mu.Unlock()
	c.wake(again)
}

// Claim judges a node's row by what others have, and notes it if it is admitted.
func (c *Claims) Claim(n model.Node) *Refusal {
	peer, name := n.Key.Cluster, n.Key.Name
	c.mu.Lock()
	b := c.books[peer]
	if b == nil {
		c.mu.Unlock()
		return refuse(AddressConflict, "peer %s is not in use", peer)
	}
	before := b.addrsOf(name)
	want := claimOf(n)
	into := b.current()
	old, had := into.nodes[name]
	into.drop(name)
	ref, smaller := c.conflictLocked(b, into, name, want)
	if ref != nil {
		into.lose(name, want)
	} else {
		into.add(name, want)
		for _, a := range want.addrs() {
			c.holders[a] = peer
		}
	}
	again := c.releaseLocked(peer, before)
	if smaller || had && old != want && len(into.losers) > 0 {
		again = append(again, peer)
	}
	c.mu.Unlock()
	c.wake(again)
	return ref
}

// Forget ends the claims of a node whose row is gone or refused.
func (c *Claims) Forget(k model.NodeKey) {
	c.mu.Lock()
	b := c.books[k.Cluster]
	if b == nil {
		c.mu.Unlock()
		return
	}
	before := b.addrsOf(k.Name)
	into := b.current()
	freed := into.drop(k.Name)
	again := c.releaseLocked(k.Cluster, before)
	if freed && len(into.losers) > 0 {
		again = append(again, k.Cluster)
	}
	c.mu.Unlock()
	c.wake(again)
}

// Nodes is how many nodes of a peer are admitted.
func (c *Claims) Nodes(peer string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.books[peer]; b != nil {
		return len(b.now.nodes)
	}
	return 0
}

// conflictLocked says what a claim conflicts with. smaller tells that it would
// win if the peer were listed from scratch.
func (c *Claims) conflictLocked(b *books, into *book, name string, want claim) (_ *Refusal, smaller bool) {
	for _, a := range want.addrs() {
		if _, ours := slices.BinarySearchFunc(c.ownNodes, a, netip.Addr.Compare); ours {
			return refuse(AddressConflict, "%v is the address of one of our own nodes", a), false
		}
		if holder, taken := c.holders[a]; taken && c.books[holder] != b {
			return refuse(AddressConflict, "%v is the address of a node of %s", a, holder), false
		}
		if other, taken := into.byAddr[a]; taken {
			return refuse(AddressConflict, "%v is the address of node %s as well", a, other), name < other
		}
		// Rules has kept it out of the peer's own pod ranges already.
		if i := slices.IndexFunc(c.ranges, func(o owned) bool { return o.prefix.Contains(a) }); i >= 0 {
			return refuse(AddressConflict, "node address %v lies inside %v of %s", a, c.ranges[i].prefix, c.ranges[i].owner), false
		}
	}
	for _, p := range want.prefixes() {
		if i, _ := slices.BinarySearchFunc(c.ownNodes, p.Addr(), netip.Addr.Compare); i < len(c.ownNodes) && p.Contains(c.ownNodes[i]) {
			return refuse(CIDROverlap, "pod range %v covers %v, the address of one of our own nodes", p, c.ownNodes[i]), false
		}
		if other, taken := into.overlapping(p); taken {
			return refuse(CIDROverlap, "pod range %v overlaps that of node %s", p, other), name < other
		}
	}
	return nil, false
}

// releaseLocked gives up those of addrs that peer no longer claims, and returns
// the peers that wait for one of them.
func (c *Claims) releaseLocked(peer string, addrs []netip.Addr) (again []string) {
	b := c.books[peer]
	var free []netip.Addr
	for _, a := range addrs {
		if (b == nil || !b.claims(a)) && c.holders[a] == peer {
			delete(c.holders, a)
			free = append(free, a)
		}
	}
	if len(free) == 0 {
		return nil
	}
	for name, o := range c.books {
		if name != peer && o.current().waitsFor(free) {
			again = append(again, name)
		}
	}
	return again
}

func (c *Claims) wake(peers []string) {
	for _, p := range peers {
		c.relist(p)
	}
}

func symmetricDifference(a, b []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, x := range slices.Concat(a, b) {
		_, inA := slices.BinarySearchFunc(a, x, netip.Addr.Compare)
		_, inB := slices.BinarySearchFunc(b, x, netip.Addr.Compare)
		if inA != inB {
			out = append(out, x)
		}
	}
	return out
}

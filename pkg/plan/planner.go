package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Planner is Compute for inputs that change little by little: it remembers the
// last input and its plan, and where only a few nodes and pods differ it
// replaces just their rows. Its answer is that of Compute, always; where rows
// depend on each other it computes from scratch. One goroutine uses it at a
// time. The rows of a plan are those of the planner: the next call changes them.
type Planner struct {
	r    *resolver // of the last input; nil at first
	plan *Plan
}

// patchLimit is how many changed rows are patched in; for more, starting over
// costs about the same.
const patchLimit = 256

// Plan returns the plan for in, whose maps the caller must not change later.
func (p *Planner) Plan(in Input) *Plan {
	in = ordered(in)
	if patched := p.patch(in); patched != nil {
		p.plan = patched
		return patched
	}
	p.r = newResolver(in)
	p.plan = p.r.plan()
	return p.plan
}

// ordered returns in with its lists sorted: they come out of maps, and an input
// that differs in their order only is the same input.
func ordered(in Input) Input {
	mesh := make(map[string][]netip.Prefix, len(in.Mesh))
	for cluster, prefixes := range in.Mesh {
		mesh[cluster] = slices.SortedFunc(slices.Values(prefixes), comparePrefixes)
	}
	in.Mesh = mesh
	in.Underlay.Addrs = slices.SortedFunc(slices.Values(in.Underlay.Addrs), compareLocal)
	return in
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// compareLocal puts longer prefixes first: they say more.
func compareLocal(a, b LocalAddr) int {
	return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Dev, b.Dev))
}

// patch returns nil where the plan has to be computed from scratch.
func (p *Planner) patch(in Input) *Plan {
	if p.r == nil || p.r.conflicts > 0 || !sameBase(p.r.in, in) {
		return nil
	}
	nodes, few := changed(p.r.in.Nodes, in.Nodes)
	pods, fewPods := changed(p.r.in.Pods, in.Pods)
	if !few || !fewPods {
		return nil
	}
	if len(nodes)+len(pods) == 0 {
		p.r.in = in
		return newPatcher(p.r, p.plan).plan()
	}
	x := newPatcher(p.r, p.plan)
	p.r.lines = nil
	if !x.removeNodes(nodes) || !x.removePods(pods) {
		return nil
	}
	p.r.in, p.r.lines = in, nil
	if !x.addNodes(nodes) || !x.addPods(pods) || p.r.conflicts > 0 {
		return nil
	}
	x.filter.put(FilterKey{}, FilterRow{p.r.rules()})
	x.lines(nodes, p.r.lines)
	return x.plan()
}

// sameBase tells whether all but nodes and pods is equal.
func sameBase(a, b Input) bool {
	return a.Local == b.Local && a.Backend == b.Backend && a.Masquerade == b.Masquerade && a.Services == b.Services && slices.Equal(a.ServiceCIDRs, b.ServiceCIDRs) && a.MTU == b.MTU && a.Held == b.Held &&
		a.Underlay.MTU == b.Underlay.MTU && slices.Equal(a.Underlay.Addrs, b.Underlay.Addrs) &&
		a.Nodes[a.Local] == b.Nodes[b.Local] && maps.EqualFunc(a.Mesh, b.Mesh, slices.Equal[[]netip.Prefix])
}

// changed returns the keys whose rows differ, if they are few.
func changed[K, V comparable](a, b map[K]V) (keys []K, few bool) {
	for k, v := range b {
		if old, ok := a[k]; !ok || old != v {
			if keys = append(keys, k); len(keys) > patchLimit {
				return nil, false
			}
		}
	}
	if len(a)+len(keys) == len(b) {
		return keys, true // nothing can be missing from b
	}
	for k := range a {
		if _, ok := b[k]; !ok {
			if keys = append(keys, k); len(keys) > patchLimit {
				return nil, false
			}
		}
	}
	return keys, true
}

// edit changes rows in place and notes which.
type edit[K, V comparable] struct {
	rows    map[K]V
	touched map[K]struct{}
}

func newEdit[K, V comparable](rows map[K]V) edit[K, V] {
	return edit[K, V]{rows, map[K]struct{}{}}
}

func (e edit[K, V]) put(k K, v V) { e.rows[k], e.touched[k] = v, struct{}{} }

func (e edit[K, V]) drop(k K) {
	delete(e.rows, k)
	e.touched[k] = struct{}{}
}

// changes are the rows that were touched, as they are now.
func (e edit[K, V]) changes() Changes[K, V] {
	c := Changes[K, V]{Set: make(map[K]V, len(e.touched))}
	for k := range e.touched {
		if v, ok := e.rows[k]; ok {
			c.Set[k] = v
		} else {
			c.Del = append(c.Del, k)
		}
	}
	return c
}

// patcher replaces the rows of some nodes and pods.
type patcher struct {
	r          *resolver
	out        Plan
	routes     edit[RouteKey, Route]
	neighbours edit[NeighbourKey, Neighbour]
	filter     edit[FilterKey, FilterRow]
}

func newPatcher(r *resolver, p *Plan) *patcher {
	x := &patcher{r: r, out: *p, routes: newEdit(p.Routes), neighbours: newEdit(p.Neighbours), filter: newEdit(p.Filter)}
	x.out.Remotes, x.out.Lines = slices.Clone(p.Remotes), slices.Clone(p.Lines)
	return x
}

func (x *patcher) plan() *Plan {
	x.out.Patch = &Patch{x.routes.changes(), x.neighbours.changes(), x.filter.changes()}
	return &x.out
}

// ours returns the prefixes of a node of r's input if no other row can depend
// on them: they lie strictly inside what its cluster may use, so that neither
// the catch-all routes nor the mesh ranges change with them.
func (x *patcher) ours(k model.NodeKey) (model.Prefixes, bool) {
	var out model.Prefixes
	for _, p := range x.r.in.Nodes[k].PodCIDRs.All() {
		p = p.Masked()
		if !x.r.inMesh(k.Cluster, p) || slices.Contains(x.r.in.Mesh[k.Cluster], p) {
			return out, false
		}
		out = out.Add(p)
	}
	return out, true
}

// removeNodes takes away what nodes of the last input brought.
func (x *patcher) removeNodes(keys []model.NodeKey) bool {
	for _, k := range keys {
		n, ok := x.r.in.Nodes[k]
		if !ok {
			continue
		}
		pods, ok := x.ours(k)
		if !ok {
			return false
		}
		for _, p := range pods.All() {
			i, found := slices.BinarySearchFunc(x.r.claims, claim{p, k}, compareClaims)
			if !found {
				return false
			}
			x.r.claims = slices.Delete(x.r.claims, i, i+1)
		}
		if pods == (model.Prefixes{}) {
			continue
		}
		for _, a := range addresses(n) {
			delete(x.r.owner, a)
		}
		m, ok := x.r.remote(k, pods)
		if !ok {
			return false
		}
		for _, a := range addresses(n) {
			delete(x.r.owner, a)
		}
		x.r.remoteRoutes(m, func(k RouteKey, _ Route) { x.routes.drop(k) })
		x.r.remoteNeighbours(m, func(k NeighbourKey, _ Neighbour) { x.neighbours.drop(k) })
		x.r.remoteFilter(m, x.filter.drop)
		x.r.count(m, -1)
		if s, ok := m.describe(); ok {
			if i, found := slices.BinarySearchFunc(x.out.Remotes, s, compareRemotes); found {
				x.out.Remotes = slices.Delete(x.out.Remotes, i, i+1)
			}
		}
	}
	return true
}

// addNodes brings in what nodes of the new input bring.
func (x *patcher) addNodes(keys []model.NodeKey) bool {
	for _, k := range keys {
		if _, ok := x.r.in.Nodes[k]; !ok {
			continue
		}
		pods, ok := x.ours(k)
		if !ok || !x.claim(k, pods) {
			return false
		}
		m, ok := x.r.remote(k, pods)
		if !ok {
			continue // without pods; a conflict makes patch give up
		}
		x.r.remoteRoutes(m, x.routes.put)
		x.r.remoteNeighbours(m, x.neighbours.put)
		x.r.remoteFilter(m, func(k FilterKey) { x.filter.put(k, FilterRow{}) })
		x.r.count(m, 1)
		if s, ok := m.describe(); ok {
			i, _ := slices.BinarySearchFunc(x.out.Remotes, s, compareRemotes)
			x.out.Remotes = slices.Insert(x.out.Remotes, i, s)
		}
	}
	return true
}

// claim enters a node's prefixes, unless one overlaps another node's. Accepted
// claims are disjoint, so only those next to it can.
func (x *patcher) claim(k model.NodeKey, pods model.Prefixes) bool {
	for _, p := range pods.All() {
		i, _ := slices.BinarySearchFunc(x.r.claims, claim{p, k}, compareClaims)
		if i > 0 && x.r.claims[i-1].prefix.Overlaps(p) || i < len(x.r.claims) && x.r.claims[i].prefix.Overlaps(p) {
			return false
		}
		x.r.claims = slices.Insert(x.r.claims, i, claim{p, k})
	}
	return true
}

func (x *patcher) removePods(keys []model.PodKey) bool {
	for _, k := range keys {
		pod, ok := x.r.in.Pods[k]
		if !ok {
			continue
		}
		for _, ip := range pod.IPs.All() {
			if !x.plain(ip) {
				return false
			}
			delete(x.r.podIPs, ip)
		}
		x.r.podRoutes(pod, func(k RouteKey, _ Route) { x.routes.drop(k) })
		podNeighbours(pod, func(k NeighbourKey, _ Neighbour) { x.neighbours.drop(k) })
		podFilter(pod, x.filter.drop)
	}
	return true
}

// plain tells whether no other route can have the same prefix as that of a pod
// address.
func (x *patcher) plain(ip netip.Addr) bool {
	for _, prefixes := range x.r.in.Mesh {
		if slices.ContainsFunc(prefixes, netip.Prefix.IsSingleIP) {
			return false
		}
	}
	own := x.r.local.PodCIDRs
	return own.Contains(ip) && !own.V4.IsSingleIP() && !own.V6.IsSingleIP()
}

func (x *patcher) addPods(keys []model.PodKey) bool {
	for _, k := range keys {
		if _, ok := x.r.in.Pods[k]; !ok {
			continue
		}
		pod := x.r.distinctPod(k)
		x.r.podRoutes(pod, x.routes.put)
		podNeighbours(pod, x.neighbours.put)
		podFilter(pod, func(k FilterKey) { x.filter.put(k, FilterRow{}) })
	}
	return true
}

// lines replaces what was said of the changed nodes.
func (x *patcher) lines(keys []model.NodeKey, fresh []status.Line) {
	stale := map[string]bool{}
	for _, k := range keys {
		stale[k.String()] = true
	}
	x.out.Lines = slices.DeleteFunc(x.out.Lines, func(l status.Line) bool { return stale[l.Object] })
	x.out.Lines = sortLines(append(x.out.Lines, fresh...))
}

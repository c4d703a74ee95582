// Package plan says what the kernel of a node should hold: from who is in the
// mesh, which pods run here and how the underlay looks, it computes the rows
// of every kernel target. It is a pure function: it does no I/O, knows no time,
// and its answer does not depend on the order in which anything was learnt.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// Numbers and names by which operators, and a restarted agent, know what in
// the kernel is ours.
const (
	Table        = 7473 // routing table
	Proto        = 73   // rtproto of routes, rules and neighbours
	RulePriority = 7473 // before main (32766), after local (0)

	IfPrefix   = "cm" // of every device of ours
	TunnelName = "cm-vxlan"

	DefaultVXLANPort = 8472
	DefaultVNI       = 7473
)

// Input is all that the plan depends on.
type Input struct {
	Local      model.NodeKey
	Nodes      map[model.NodeKey]model.Node // of all clusters, the local node included
	Pods       map[model.PodKey]model.Pod   // interfaces on this node
	Mesh       map[string][]netip.Prefix    // pod prefixes by cluster: ours and what each Peer may announce
	Backend    model.Encap
	Masquerade bool
	Services   bool // connections to Services are translated here
	// ServiceCIDRs are the virtual addresses of Services, if these are ours.
	ServiceCIDRs []netip.Prefix
	MTU          int // bytes, of the underlay, as configured; 0: what Underlay says
	Underlay     Underlay
	// Held is what the rules in the kernel were made for, as long as not every
	// source has reported: nodes that are still to come may need its lengths.
	Held Rules
}

// LocalAddr is an address of this node, with the length of its subnet.
type LocalAddr struct {
	Prefix netip.Prefix
	Dev    string
}

// Underlay is what carries packets between nodes.
type Underlay struct {
	Addrs []LocalAddr
	MTU   int // bytes, of the device that holds the node's address; 0 means 1500
}

// Plan is what the kernel should hold.
type Plan struct {
	Routes     map[RouteKey]Route
	Rules      map[RuleKey]Rule
	Neighbours map[NeighbourKey]Neighbour
	Tunnels    map[string]Tunnel // by device name
	Sysctls    map[string]string // by path below /proc/sys
	Filter     map[FilterKey]FilterRow
	PodMTU     int
	Lines      []status.Line   // what cannot be done as asked, sorted; Component is "plan"
	Remotes    []status.Remote // every node that is routed to, sorted
	Patch      *Patch          // what differs from the planner's plan before; nil: it may be anything
}

// Patch is what a plan has other than the one before it.
type Patch struct {
	Routes     Changes[RouteKey, Route]
	Neighbours Changes[NeighbourKey, Neighbour]
	Filter     Changes[FilterKey, FilterRow]
}

// Changes are rows that were set and keys that are gone.
type Changes[K, V comparable] struct {
	Set map[K]V
	Del []K
}

// Compute returns the whole plan. It takes tens of milliseconds at 5,000 nodes;
// a Planner gives the same answer faster when little changed.
func Compute(in Input) *Plan { return new(Planner).Plan(in) }

// resolver answers questions about the input and collects what to report.
type resolver struct {
	in     Input
	local  model.Node
	subnet []LocalAddr         // of more than one address, longest prefix first
	mine   map[netip.Addr]bool // addresses of this node
	router model.Addrs
	podMTU uint32

	// Filled on the way.
	pods      []model.Pod // with distinct addresses
	claims    []claim     // that were accepted, sorted
	owner     map[netip.Addr]model.NodeKey
	podIPs    map[netip.Addr]model.PodKey
	lines     []status.Line
	inner4    [129]int // nodes by length of their pod prefix, 0: none
	inner6    [129]int
	conflicts int // between rows; the answer for one depends on another
}

func (r *resolver) plan() *Plan {
	remotes := r.remotes()
	r.pods = r.distinctPods()
	return &Plan{
		Routes:     r.routes(remotes),
		Rules:      rules(),
		Neighbours: r.neighbours(remotes),
		Tunnels:    r.tunnels(),
		Sysctls:    r.sysctls(),
		Filter:     r.filter(remotes),
		PodMTU:     int(r.podMTU),
		Remotes:    describe(remotes),
		Lines:      sortLines(r.lines),
	}
}

func newResolver(in Input) *resolver {
	r := &resolver{in: in, local: in.Nodes[in.Local], mine: map[netip.Addr]bool{}, podMTU: uint32(PodMTU(in))}
	r.local.Key = in.Local
	r.router = RouterIPs(r.local.PodCIDRs)
	for _, a := range r.local.Internal.All() {
		r.mine[a] = true
	}
	for _, a := range in.Underlay.Addrs {
		r.mine[a.Prefix.Addr()] = true
		if !a.Prefix.IsSingleIP() {
			r.subnet = append(r.subnet, a)
		}
	}
	r.checkLocal()
	return r
}

func (r *resolver) checkLocal() {
	if !r.local.Internal.V4.IsValid() && !r.local.Internal.V6.IsValid() {
		r.report(r.in.Local.String(), status.Degraded, "this node has no address that others could send to",
			"give the Node an InternalIP in status.addresses (kubelet --node-ip)")
	}
	if len(r.local.PodCIDRs.All()) == 0 {
		r.report(r.in.Local.String(), status.Degraded, "this node has no pod prefix",
			"let the controller-manager allocate node CIDRs, or set ipam.mode to cluster-pool")
	}
	if r.local.PodCIDRs.V6.IsValid() && r.podMTU < minMTUIPv6 {
		r.report(r.in.Local.String(), status.Degraded,
			fmt.Sprintf("pods get MTU %d, less than the %d that IPv6 needs", r.podMTU, minMTUIPv6),
			"raise the underlay's MTU or routing.mtu")
	}
}

func (r *resolver) report(object string, level status.Level, message, remedy string) {
	r.lines = append(r.lines, status.Line{Key: status.Key{Component: "plan", Object: object},
		Level: level, Message: message, Remedy: remedy})
}

// conflict reports that a row gives way to another one.
func (r *resolver) conflict(object, message, remedy string) {
	r.conflicts++
	r.report(object, status.Degraded, message, remedy)
}

// sortLines sorts lines and leaves one per object, so that each has its own
// place on a status board.
func sortLines(lines []status.Line) []status.Line {
	slices.SortFunc(lines, func(a, b status.Line) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	var out []status.Line
	for _, l := range lines {
		if n := len(out); n > 0 && out[n-1].Object == l.Object {
			out[n-1].Message += "; " + l.Message
			if out[n-1].Remedy != l.Remedy {
				out[n-1].Remedy += "; " + l.Remedy
			}
			continue
		}
		out = append(out, l)
	}
	return out
}

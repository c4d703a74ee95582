// Package service says where packets to Services go: from the ports of Services
// and their EndpointSlices it computes frontends, each an address and port with
// the slots that connections to it are spread over. Every kind of address (the
// cluster's, of nodes, external, of load balancers) becomes the same kind of
// row, so that a data path has one thing to look up. It is pure: its answer
// depends on the rows only, not on the order in which they came.
package service

import (
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// FrontKey is where a client sends to. A key with Outside counts for packets
// from outside of the cluster only, and before one without.
type FrontKey struct {
	Addr     netip.Addr
	Protocol uint8 // IANA number
	Port     uint16
	Outside  bool
}

func (k FrontKey) String() string {
	from := ""
	if k.Outside {
		from = " (from outside)"
	}
	return fmt.Sprintf("%s %d%s", netip.AddrPortFrom(k.Addr, k.Port), k.Protocol, from)
}

// Front is what becomes of new connections to a FrontKey. Those that are there
// already are not affected.
type Front struct {
	Verdict         Verdict
	Slots           Slots  // with verdict Forward
	AffinitySeconds uint32 // clients stay with a backend for so long; 0: they don't
	Ranges          string // prefixes of the clients that may use it, as in the row; empty: everybody
}

// Verdict is what to do with a packet.
type Verdict uint8

// The verdicts.
const (
	Forward Verdict = iota
	Reject          // no backend: tell the client (RST, or ICMP port unreachable)
	Drop            // no backend here: say nothing, a load balancer shall try another node
)

func (v Verdict) String() string { return [...]string{"forward", "reject", "drop"}[v] }

// Plan is what a node's data path should hold.
type Plan struct {
	// Fronts are all frontends. The zero key stands for what they have in common.
	Fronts map[FrontKey]Front
	// Health is, by healthCheckNodePort, what is asked for there.
	Health map[uint16]Health
	Lines  []status.Line // what can't be done as asked, sorted; Component is "services"
}

// Patch is what has changed of a Plan. The zero key of Fronts never does.
type Patch struct {
	Set   map[FrontKey]Front
	Del   []FrontKey
	Total int // fronts that there are now
	// Health and Lines are as in Plan.
	Health map[uint16]Health
	Lines  []status.Line
}

// Health is the number of backends on this node of a Service whose
// externalTrafficPolicy is Local.
type Health struct {
	Namespace, Name string
	Local           int
}

func (h Health) service() string { return h.Namespace + "/" + h.Name }

// Base is what node and configuration fix.
type Base struct {
	Node string
	Zone string // topology.kubernetes.io/zone of the node
	// NodeAddrs are the node's addresses that NodePorts are served on.
	NodeAddrs []netip.Addr
	// HostAddrs are all addresses of the node, on which ports of pods are served.
	HostAddrs []netip.Addr
	// Ours are prefixes of nodes, pods and Services. An external address of a
	// Service in there would take what belongs to somebody else.
	Ours []netip.Prefix
	// External are the prefixes that external addresses must lie in, and may,
	// whoever else is in there; empty: any that is not in Ours.
	External []netip.Prefix
}

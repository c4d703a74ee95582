package mesh

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/clustermesh/clustermesh/pkg/mcs"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// verdict is what becomes of a row: admitted if refusal is nil and skip false.
type verdict struct {
	skip    bool // not for us, and nothing to complain about
	refusal *Refusal
	node    *model.Node // of an admitted node's row
}

// judgeRow judges a row by itself and by what its Peer allows: all that does
// not depend on other rows.
func judgeRow(r *Rules, key string, value []byte) verdict {
	t, err := wire.ParseTail(key)
	var unknown *wire.UnknownKindError
	switch {
	case errors.As(err, &unknown):
		return verdict{skip: true} // of a newer version
	case err != nil:
		return verdict{refusal: refuse(BadKey, "%v", err)}
	case len(value) > maxValue(t.Kind):
		return verdict{refusal: refuse(TooLarge, "value of %d bytes, the largest sane one has %d", len(value), maxValue(t.Kind))}
	}
	switch t.Kind {
	case wire.KindCluster:
		_, ref := judgeHeader(r, value)
		return verdict{refusal: ref}
	case wire.KindHeartbeat:
		_, err = wire.DecodeHeartbeat(value)
	case wire.KindNode:
		return judgeNode(r, t, value)
	case wire.KindIdentity, wire.KindEndpoint, wire.KindService, wire.KindSlice, wire.KindExport:
		if len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, t.Name[0]) {
			return verdict{skip: true}
		}
		return verdict{refusal: judgeNamespaced(r, t, value)}
	default:
		return verdict{skip: true}
	}
	return verdict{refusal: badValue(err)}
}

// judgeHeader judges the cluster row, which speaks for the whole peer.
func judgeHeader(r *Rules, value []byte) (wire.Cluster, *Refusal) {
	c, err := wire.DecodeCluster(value)
	if err != nil {
		return c, badValue(err)
	}
	if c.Name != r.Peer {
		return c, refuse(ForeignCluster, "the cluster says that it is %q, its Peer is named %q", c.Name, r.Peer)
	}
	return c, nil
}

func judgeNamespaced(r *Rules, t wire.Tail, value []byte) *Refusal {
	switch t.Kind {
	case wire.KindService:
		_, err := wire.DecodeService(value)
		return badValue(err)
	case wire.KindExport:
		e, err := wire.DecodeExport(value)
		if err == nil {
			err = mcs.Check(model.ServiceKey{Namespace: t.Name[0], Name: t.Name[1]}, e)
		}
		return badValue(err)
	case wire.KindSlice:
		return judgeSlice(r, value)
	}
	id, err := wire.ParseID(t.Name[1])
	if err != nil {
		return refuse(BadKey, "%v", err)
	}
	if t.Kind == wire.KindIdentity {
		_, err := wire.DecodeIdentity(r.Peer, t.Name[0], id, value)
		return badValue(err)
	}
	addr, err := wire.EndpointAddr(t)
	if err != nil {
		return refuse(BadKey, "%v", err)
	}
	if !r.allowsPod(addr) {
		return refuse(CIDRNotAllowed, "address %v lies outside of spec.import.podCIDRs %v", addr, r.PodCIDRs)
	}
	_, err = wire.DecodeEndpoint(value)
	return badValue(err)
}

func judgeSlice(r *Rules, value []byte) *Refusal {
	s, err := wire.DecodeSlice(value)
	if err != nil {
		return badValue(err)
	}
	for _, e := range s.Endpoints {
		if !r.allowsPod(e.Addr) {
			return refuse(CIDRNotAllowed, "backend %v lies outside of spec.import.podCIDRs %v", e.Addr, r.PodCIDRs)
		}
	}
	return nil
}

func judgeNode(r *Rules, t wire.Tail, value []byte) verdict {
	n, err := wire.DecodeNode(model.NodeKey{Cluster: r.Peer, Name: t.Name[0]}, value)
	if err != nil {
		return verdict{refusal: badValue(err)}
	}
	for _, p := range n.PodCIDRs.All() {
		if !inside(r.PodCIDRs, p) {
			return verdict{refusal: refuse(CIDRNotAllowed, "pod range %v lies outside of spec.import.podCIDRs %v", p, r.PodCIDRs)}
		}
	}
	for _, a := range nodeAddrs(n) {
		switch {
		case !sane(a):
			return verdict{refusal: refuse(BadAddress, "no node can have the address %v", a)}
		case r.allowsPod(a):
			return verdict{refusal: refuse(AddressConflict, "node address %v lies inside the peer's pod ranges %v", a, r.PodCIDRs)}
		case len(r.NodeCIDRs) > 0 && !contains(r.NodeCIDRs, a):
			return verdict{refusal: refuse(AddressNotAllowed, "node address %v lies outside of spec.import.nodeCIDRs %v", a, r.NodeCIDRs)}
		}
	}
	return verdict{node: &n}
}

func nodeAddrs(n model.Node) []netip.Addr { return append(n.Internal.All(), n.External.All()...) }

// sane tells whether packets can be sent to a as to one host elsewhere.
func sane(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		a.Zone() == "" && !a.Is4In6() && !(a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240))
}

func badValue(err error) *Refusal {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wire.ErrVersion):
		return refuse(UnknownVersion, "%v; upgrade this cluster's clustermesh", err)
	case errors.Is(err, wire.ErrForeign):
		return refuse(ForeignCluster, "%v", err)
	case errors.Is(err, wire.ErrIdentity):
		return refuse(IdentityMismatch, "%v", err)
	}
	return refuse(BadValue, "%v", err)
}

func (r *Rules) allowsPod(a netip.Addr) bool { return contains(r.PodCIDRs, a) }

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// inside tells whether p lies completely in one of list.
func inside(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(x netip.Prefix) bool { return x.Bits() <= p.Bits() && x.Contains(p.Addr()) })
}

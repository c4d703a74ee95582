package wire

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// encaps numbers the values of model.Encap on the wire; the index counts.
var encaps = [...]model.Encap{model.EncapAuto, model.EncapDirect, model.EncapVXLAN}

// EncodeNode is the value of a node's row. The cluster's and the node's name
// stand in the key only.
func EncodeNode(n model.Node) []byte {
	e := newEncoder()
	e.addr(1, n.Internal.V4)
	e.addr(2, n.Internal.V6)
	e.addr(3, n.External.V4)
	e.addr(4, n.External.V6)
	e.prefix(5, n.PodCIDRs.V4)
	e.prefix(6, n.PodCIDRs.V6)
	for i, m := range encaps {
		if m == n.Encap {
			e.uint(7, uint64(i))
		}
	}
	e.uint(8, uint64(n.VXLANPort))
	e.uint(9, uint64(n.VNI))
	if n.WireGuardKey != [32]byte{} {
		e.bytes(10, n.WireGuardKey[:])
	}
	return e.b
}

// DecodeNode reads what EncodeNode wrote. key says whose row it is.
func DecodeNode(key model.NodeKey, value []byte) (model.Node, error) {
	n := model.Node{Key: key, Encap: encaps[0]}
	err := decode(value, func(x field) error { return decodeNodeField(&n, x) })
	if err == nil && n.Internal == (model.Addrs{}) && n.External == (model.Addrs{}) {
		err = errors.New("node has no address")
	}
	return n, err
}

func decodeNodeField(n *model.Node, x field) (err error) {
	var v uint64
	switch x.n {
	case 1:
		n.Internal.V4, err = addrOf(x, 4)
	case 2:
		n.Internal.V6, err = addrOf(x, 6)
	case 3:
		n.External.V4, err = addrOf(x, 4)
	case 4:
		n.External.V6, err = addrOf(x, 6)
	case 5:
		n.PodCIDRs.V4, err = prefixOf(x, 4)
	case 6:
		n.PodCIDRs.V6, err = prefixOf(x, 6)
	case 7:
		if v, err = x.uint(uint64(len(encaps) - 1)); err == nil {
			n.Encap = encaps[v]
		}
	case 8:
		v, err = x.uint(1<<16 - 1)
		n.VXLANPort = uint16(v)
	case 9:
		v, err = x.uint(1<<24 - 1) // RFC 7348: the VNI has 24 bits
		n.VNI = uint32(v)
	case 10:
		var b []byte
		if b, err = x.bytes(32); err == nil && copy(n.WireGuardKey[:], b) != 32 {
			err = fmt.Errorf("key of %d bytes, want 32", len(b))
		}
	}
	return err
}

func addrOf(x field, family int) (netip.Addr, error) {
	a, err := x.addr()
	if err == nil && a.Is4() != (family == 4) {
		err = fmt.Errorf("%v is not of IPv%d", a, family)
	}
	return a, err
}

func prefixOf(x field, family int) (netip.Prefix, error) {
	p, err := x.prefix()
	if err == nil && p.Addr().Is4() != (family == 4) {
		err = fmt.Errorf("%v is not of IPv%d", p, family)
	}
	return p, err
}

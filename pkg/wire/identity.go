package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	maxLabels     = 512
	maxLabelKey   = 317 // a 253 character prefix, a slash, a 63 character name
	maxLabelValue = 63
)

// Identity is what a set of pods has in common: where they are and what they
// are labelled. Its number follows from it, so nobody hands numbers out.
type Identity struct {
	Cluster, Namespace      string
	NamespaceLabels, Labels map[string]string
}

// ID is the first 64 bits of SHA-256 over the identity's canonical encoding:
// that of its row, with the cluster in field 1, labels sorted by key.
func (i Identity) ID() uint64 {
	h := sha256.Sum256(i.encode())
	return binary.BigEndian.Uint64(h[:8])
}

// Encode is the row's value.
func (i Identity) Encode() []byte { return i.encode() }

func (i Identity) encode() []byte {
	e := newEncoder()
	e.string(1, i.Cluster)
	e.string(2, i.Namespace)
	e.labels(3, i.NamespaceLabels)
	e.labels(4, i.Labels)
	return e.b
}

// labels writes a map as a list key, value, key, value… sorted by key.
func (e *encoder) labels(n protowire.Number, m map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.element(n, []byte(k))
		e.element(n, []byte(m[k]))
	}
}

// What an identity's row can be beside garbled.
var (
	ErrForeign  = errors.New("identity of another cluster or namespace")
	ErrIdentity = errors.New("identity whose number does not follow from its labels")
)

// DecodeIdentity reads what Identity.Encode wrote. It refuses a row whose
// number does not follow from it, and one that is not in canonical form.
func DecodeIdentity(cluster, ns string, id uint64, value []byte) (Identity, error) {
	var i Identity
	nsLabels, labels := labelReader{into: &i.NamespaceLabels}, labelReader{into: &i.Labels}
	err := decode(value, func(x field) (err error) {
		switch x.n {
		case 1:
			i.Cluster, err = x.string(63)
		case 2:
			i.Namespace, err = x.string(63)
		case 3:
			err = nsLabels.add(x)
		case 4:
			err = labels.add(x)
		}
		return err
	})
	switch {
	case err != nil:
		return Identity{}, err
	case nsLabels.half || labels.half:
		return Identity{}, fmt.Errorf("label %q has no value", nsLabels.key+labels.key)
	case i.Cluster != cluster || i.Namespace != ns:
		return Identity{}, fmt.Errorf("%w: it is of %s/%s, its key of %s/%s", ErrForeign, i.Cluster, i.Namespace, cluster, ns)
	case i.ID() != id:
		return Identity{}, fmt.Errorf("%w: it is %s, its key says %s", ErrIdentity, FormatID(i.ID()), FormatID(id))
	}
	return i, nil
}

// labelReader puts a list key, value, key, value… back into a map.
type labelReader struct {
	into *map[string]string
	long bool // values may be of any length, as annotations' may
	key  string
	half bool
}

func (r *labelReader) add(x field) error {
	if r.half {
		most := maxLabelValue
		if r.long {
			most = MaxValue
		}
		v, err := x.string(most)
		(*r.into)[r.key], r.half = v, false
		return err
	}
	k, err := x.string(maxLabelKey)
	switch {
	case err != nil:
		return err
	case *r.into == nil:
		*r.into = map[string]string{}
	case k <= r.key:
		return fmt.Errorf("label %q stands behind %q", k, r.key)
	case len(*r.into) == maxLabels:
		return fmt.Errorf("more than %d labels", maxLabels)
	}
	r.key, r.half = k, true
	return nil
}

// NamedPort is a container port that policies may name.
type NamedPort struct {
	Name     string
	Protocol uint8 // IANA protocol number
	Port     uint16
}

// Endpoint is an address that carries an identity. Namespace, identity and
// address stand in the key.
type Endpoint struct {
	Node  string
	Ports []NamedPort
}

const maxNamedPorts = 256

// Encode is the row's value.
func (p Endpoint) Encode() []byte {
	e := newEncoder()
	e.string(1, p.Node)
	for _, port := range p.Ports {
		b := []byte{port.Protocol, byte(port.Port >> 8), byte(port.Port)}
		e.element(2, append(b, port.Name...))
	}
	return e.b
}

// DecodeEndpoint reads what Endpoint.Encode wrote.
func DecodeEndpoint(value []byte) (p Endpoint, err error) {
	err = decode(value, func(x field) (err error) {
		switch x.n {
		case 1:
			p.Node, err = x.string(253)
		case 2:
			var b []byte
			if b, err = x.bytes(3 + 63); err != nil {
				return err
			}
			if len(b) < 4 || len(p.Ports) == maxNamedPorts {
				return fmt.Errorf("named port of %d bytes, number %d", len(b), len(p.Ports)+1)
			}
			name, err := printable(b[3:])
			if err != nil {
				return fmt.Errorf("named port: %w", err)
			}
			p.Ports = append(p.Ports, NamedPort{Name: name, Protocol: b[0], Port: binary.BigEndian.Uint16(b[1:])})
		}
		return err
	})
	return p, err
}

// EndpointAddr reads the address out of an endpoint's key.
func EndpointAddr(t Tail) (netip.Addr, error) {
	a, err := netip.ParseAddr(t.Name[2])
	if err != nil || a.String() != t.Name[2] || a.Is4In6() || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("endpoint address %.60q is not in canonical form", t.Name[2])
	}
	return a, nil
}

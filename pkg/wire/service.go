package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Port is a port of a service or of a slice of its endpoints.
type Port struct {
	Name        string
	AppProtocol string
	Protocol    uint8 // IANA protocol number
	Port        uint16
}

const (
	maxPorts       = 20_000       // what Kubernetes allows in an EndpointSlice; a Service has no limit of its own
	maxAppProtocol = 253 + 1 + 63 // a qualified name
)

func (e *encoder) ports(n protowire.Number, ports []Port) {
	for _, p := range ports {
		var m encoder
		m.uint(1, uint64(p.Protocol))
		m.uint(2, uint64(p.Port))
		m.string(3, p.Name)
		m.string(4, p.AppProtocol)
		e.element(n, m.b)
	}
}

func appendPort(to *[]Port, x field) error {
	b, err := x.bytes(512)
	if err != nil {
		return err
	}
	if len(*to) == maxPorts {
		return fmt.Errorf("more than %d ports", maxPorts)
	}
	var p Port
	err = fields(b, func(x field) (err error) {
		var v uint64
		switch x.n {
		case 1:
			v, err = x.uint(255)
			p.Protocol = uint8(v)
		case 2:
			v, err = x.uint(65535)
			p.Port = uint16(v)
		case 3:
			p.Name, err = x.string(63)
		case 4:
			p.AppProtocol, err = x.string(maxAppProtocol)
		}
		return err
	})
	*to = append(*to, p)
	return err
}

// Service is a service that its cluster shares. Namespace and name stand in the
// key; its backends are in slices.
type Service struct {
	Ports    []Port
	Headless bool
	// AffinitySeconds is the timeout of ClientIP session affinity, 0 for none.
	AffinitySeconds uint32
}

// Encode is the row's value.
func (s Service) Encode() []byte {
	e := newEncoder()
	e.ports(1, s.Ports)
	e.bool(2, s.Headless)
	e.uint(3, uint64(s.AffinitySeconds))
	return e.b
}

// DecodeService reads what Service.Encode wrote.
func DecodeService(value []byte) (s Service, err error) {
	err = decode(value, func(x field) (err error) {
		var v uint64
		switch x.n {
		case 1:
			err = appendPort(&s.Ports, x)
		case 2:
			v, err = x.uint(1)
			s.Headless = v == 1
		case 3:
			v, err = x.uint(1<<32 - 1)
			s.AffinitySeconds = uint32(v)
		}
		return err
	})
	return s, err
}

// Export is a ServiceExport (KEP-1645): what conflict rules compare.
type Export struct {
	CreatedMilli        uint64 // creation time, milliseconds since 1970
	Type                string // ClusterSetIP or Headless
	SessionAffinity     string
	AffinitySeconds     uint32
	TrafficDistribution string
	InternalPolicy      string
	IPFamilies          []string
	Ports               []Port
	Labels, Annotations map[string]string
}

// Encode is the row's value.
func (s Export) Encode() []byte {
	e := newEncoder()
	e.uint(1, s.CreatedMilli)
	e.string(2, s.Type)
	e.string(3, s.SessionAffinity)
	e.uint(4, uint64(s.AffinitySeconds))
	e.string(5, s.TrafficDistribution)
	e.string(6, s.InternalPolicy)
	e.strings(7, s.IPFamilies)
	e.ports(8, s.Ports)
	e.labels(9, s.Labels)
	e.labels(10, s.Annotations)
	return e.b
}

// DecodeExport reads what Export.Encode wrote.
func DecodeExport(value []byte) (s Export, err error) {
	labels := labelReader{into: &s.Labels}
	annotations := labelReader{into: &s.Annotations, long: true}
	err = decode(value, func(x field) (err error) {
		var v uint64
		switch x.n {
		case 1:
			s.CreatedMilli, err = x.uint(1 << 52)
		case 2:
			s.Type, err = x.string(63)
		case 3:
			s.SessionAffinity, err = x.string(63)
		case 4:
			v, err = x.uint(1<<32 - 1)
			s.AffinitySeconds = uint32(v)
		case 5:
			s.TrafficDistribution, err = x.string(63)
		case 6:
			s.InternalPolicy, err = x.string(63)
		case 7:
			err = appendString(&s.IPFamilies, x, 2)
		case 8:
			err = appendPort(&s.Ports, x)
		case 9:
			err = labels.add(x)
		case 10:
			err = annotations.add(x)
		}
		return err
	})
	if err == nil && (labels.half || annotations.half) {
		err = fmt.Errorf("label %q has no value", labels.key+annotations.key)
	}
	return s, err
}

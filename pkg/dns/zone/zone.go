// Package zone answers questions about the names of a cluster set, as KEP-1645's
// DNS schema and CoreDNS's kubernetes plugin define them. It holds what is known
// of the zone, and decides; it opens no socket and asks for no time.
package zone

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// MaxTTL is the longest time, in seconds, that answers may be kept.
const MaxTTL = 3600

// Config is what does not change while a zone is served.
type Config struct {
	Name       string // clusterset.local
	TTLSeconds uint32 // of all records but TXT
	UDPSize    uint16 // octets that we can take, and send at most over UDP
}

// Zone is what is known of a zone. Any number of goroutines may ask it, while
// one changes it; each answer is of one state of its name.
type Zone struct {
	name    []byte // as packets have it, in lower case
	ttl     uint32
	udpSize uint16

	synced     atomic.Bool
	serial     atomic.Uint32
	servers    atomic.Pointer[set] // ns.dns.<zone>
	namespaces *shards[struct{}]
	services   *shards[*service] // by the labels <service>.<namespace>, as packets have them
}

// New returns a zone that knows nothing yet.
func New(c Config) (*Zone, error) {
	name, err := ParseName(c.Name)
	if err != nil {
		return nil, fmt.Errorf("zone: %w", err)
	}
	if longest := 128; len(name) > longest {
		return nil, fmt.Errorf("zone %q is too long for names of services in it: use at most %d characters", c.Name, longest-2)
	}
	if c.TTLSeconds > MaxTTL {
		return nil, fmt.Errorf("TTL %d is not valid: use 0 to %d seconds", c.TTLSeconds, MaxTTL)
	}
	if c.UDPSize < 512 || c.UDPSize > 4096 {
		return nil, fmt.Errorf("UDP size %d is not valid: use 512 to 4096 octets", c.UDPSize)
	}
	z := &Zone{name: name, ttl: c.TTLSeconds, udpSize: c.UDPSize, namespaces: newShards[struct{}](), services: newShards[*service]()}
	z.SetServers(nil)
	return z, nil
}

// Name is the zone's, with its last dot.
func (z *Zone) Name() string { return Text(z.name) }

// SetSynced says that all names are known; before, what is not known may exist.
func (z *Zone) SetSynced() { z.synced.Store(true) }

// SetSerial sets the SOA record's serial number: when the zone changed, in
// seconds since 1970.
func (z *Zone) SetSerial(n uint32) { z.serial.Store(n) }

// SetServers sets the addresses at which the zone is served.
func (z *Zone) SetServers(addrs []netip.Addr) {
	s := &set{ports: [][]port{{{}}}, virtual: true}
	for _, a := range addrs {
		s.endpoints = append(s.endpoints, endpoint{addr: a})
	}
	s.finish()
	z.servers.Store(s)
}

// SetNamespaces adds and removes namespaces.
func (z *Zone) SetNamespaces(set, del []string) {
	add := make(map[string]struct{}, len(set))
	for _, n := range set {
		add[labels(n)] = struct{}{}
	}
	gone := make([]string, 0, len(del))
	for _, n := range del {
		gone = append(gone, labels(n))
	}
	z.namespaces.update(add, gone)
}

// Change is what is known of a ServiceImport now.
type Change struct {
	Key    model.ServiceKey
	Import model.ServiceImport
	Slices []model.ImportSlice
	Gone   bool
}

// SetServices makes changes known.
func (z *Zone) SetServices(list []Change) {
	set := make(map[string]*service, len(list))
	var gone []string
	for _, c := range list {
		key := labels(c.Key.Name) + labels(c.Key.Namespace)
		if c.Gone {
			gone = append(gone, key)
		} else {
			set[key] = newService(c.Import, c.Slices)
		}
	}
	z.services.update(set, gone)
}

// labels is a label as packets have it. Kubernetes takes no name that is longer
// than one, so for others nobody can ask.
func labels(name string) string {
	wire, err := ParseName(name)
	if err != nil {
		return name
	}
	return string(wire[:len(wire)-1])
}

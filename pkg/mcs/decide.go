package mcs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Ahead is how far the creation time of an export may lie in the future: clocks
// differ. One further ahead takes no part until its time has come.
const Ahead = 5 * 60 * 1000 // milliseconds

// claim is what one cluster says of a Service.
type claim struct {
	cluster string
	wire.Export
}

// refusal is a claim that takes no part.
type refusal struct{ cluster, why, remedy string }

// decision is what all clusters make of the claims on one Service.
type decision struct {
	claims   []claim // by precedence: the oldest first, then by cluster (N22)
	refused  []refusal
	spec     wire.Export // of the import; no claims: the zero one
	conflict Condition   // of all exports that take part
	// ports are, by cluster and by name and protocol of a port there, those of derived
	// objects. A port that is not in there gets no traffic.
	ports map[string]map[portName]wire.Port
	due   uint64 // when the first of the claims from the future comes of age; 0: there is none
}

// portName is how EndpointSlices tell ports apart.
type portName struct {
	name     string
	protocol uint8
}

// decide resolves conflicts: exports, encoded, by cluster; now in milliseconds.
func decide(k model.ServiceKey, exports map[string]string, now uint64) *decision {
	d := &decision{}
	for cluster, text := range exports {
		d.hear(k, cluster, text, now)
	}
	slices.SortFunc(d.claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.CreatedMilli, b.CreatedMilli), strings.Compare(a.cluster, b.cluster))
	})
	slices.SortFunc(d.refused, func(a, b refusal) int { return strings.Compare(a.cluster, b.cluster) })
	if len(d.claims) == 0 {
		return d
	}
	d.spec = d.claims[0].Export // the oldest wins whole (N24, N25) …
	d.spec.CreatedMilli = 0
	d.spec.IPFamilies = families(d.spec.IPFamilies)
	var lost []lostPort
	d.spec.Ports, lost = union(d.claims) // … but for ports (N23)
	d.ports = derivedPorts(d.claims, d.spec)
	d.conflict = conflict(d, lost)
	return d
}

// hear takes in a claim.
func (d *decision) hear(k model.ServiceKey, cluster, text string, now uint64) {
	e, err := wire.DecodeExport([]byte(text))
	if err == nil {
		err = Check(k, e)
	}
	switch {
	case err != nil:
		d.refused = append(d.refused, refusal{cluster, oneLine(err), "correct the ServiceExport or the Service in cluster " + cluster})
	case e.CreatedMilli > now+Ahead:
		d.refused = append(d.refused, refusal{cluster,
			fmt.Sprintf("its creation time %s lies in the future", moment(e.CreatedMilli)), "set the clock of cluster " + cluster + ", then delete and create the ServiceExport"})
		if due := e.CreatedMilli - Ahead; d.due == 0 || due < d.due {
			d.due = due
		}
	default:
		d.claims = append(d.claims, claim{cluster, e})
	}
}

// oneLine is an error as one line of at most 300 bytes.
func oneLine(err error) string {
	return wire.Shown(strings.ReplaceAll(err.Error(), "\n", "; "), 300)
}

// families puts IPv4 first, so that all clusters write them alike, and the first
// one, which a Service can't change, changes as seldom as possible.
func families(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

// claim returns the claim of a cluster.
func (d *decision) claim(cluster string) (claim, bool) {
	i := slices.IndexFunc(d.claims, func(c claim) bool { return c.cluster == cluster })
	if i < 0 {
		return claim{}, false
	}
	return d.claims[i], true
}

// clusters are the sources, sorted (N15).
func (d *decision) clusters() []string {
	out := make([]string, 0, len(d.claims))
	for _, c := range d.claims {
		out = append(out, c.cluster)
	}
	slices.Sort(out)
	return out
}

// lostPort is a port of a claim that is not in the union, or not as it is.
type lostPort struct {
	claim  string // cluster
	port   wire.Port
	winner wire.Port
	of     string // cluster of the winner
}

// maxPorts is how many ports every version of Kubernetes takes in an EndpointSlice.
const maxPorts = 100

// union merges the ports of all claims: by name, then by protocol and number.
// Precedence picks the loser (N23).
func union(claims []claim) (ports []wire.Port, lost []lostPort) {
	var owners []string
	for _, c := range claims {
		for _, p := range c.Ports {
			i := slices.IndexFunc(ports, func(q wire.Port) bool { return q.Name == p.Name })
			if i < 0 {
				i = slices.IndexFunc(ports, func(q wire.Port) bool { return number(q) == number(p) })
			}
			switch {
			case i >= 0 && ports[i] != p:
				lost = append(lost, lostPort{c.cluster, p, ports[i], owners[i]})
			case i >= 0:
			case len(ports) == maxPorts:
				lost = append(lost, lostPort{claim: c.cluster, port: p})
			default:
				ports, owners = append(ports, p), append(owners, c.cluster)
			}
		}
	}
	return ports, lost
}

// derivedPorts finds for every cluster's ports those of the union with the same
// protocol and number, whatever they are called there: traffic to a port goes to
// backends that expose just that one (N23).
func derivedPorts(claims []claim, spec wire.Export) map[string]map[portName]wire.Port {
	byNumber := make(map[portNumber]wire.Port, len(spec.Ports))
	for _, p := range spec.Ports {
		p.Name = derivedPortName(spec, p)
		byNumber[number(p)] = p
	}
	out := make(map[string]map[portName]wire.Port, len(claims))
	for _, c := range claims {
		ports := make(map[portName]wire.Port, len(c.Ports))
		for _, p := range c.Ports {
			if derived, ok := byNumber[number(p)]; ok {
				ports[portName{p.Name, p.Protocol}] = derived
			}
		}
		out[c.cluster] = ports
	}
	return out
}

// derivedPortName is what a port of an import is called in derived objects. A
// Service with several ports, other than an import, must name each.
func derivedPortName(spec wire.Export, p wire.Port) string {
	if p.Name != "" || len(spec.Ports) == 1 || spec.Type == Headless {
		return p.Name
	}
	name := fmt.Sprintf("unnamed-%s-%d", strings.ToLower(protocols[p.Protocol]), p.Port)
	for slices.ContainsFunc(spec.Ports, func(q wire.Port) bool { return q.Name == name }) {
		name += "-x"
	}
	return name
}

package lbpool

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/clustermesh/clustermesh/pkg/hash"
	"github.com/clustermesh/clustermesh/pkg/model"
)

// Node is the row of a node that may answer for addresses.
type Node struct {
	// Alive says that its kubelet is heard of, whether it calls the node ready or
	// not: what has failed there is seldom the kernel, which serves the address.
	Alive  bool
	Apart  bool // excluded from load balancers by its label, or without a network yet
	Labels string
	Addrs  model.Addrs // its InternalIPs
}

// Election is all that the choice of the nodes depends on. Every node makes it
// for itself, of the same rows.
type Election struct {
	Pools    map[string]Pool
	Services map[Key]Service
	Nodes    map[string]Node
	// Local are, by Service whose externalTrafficPolicy is Local, the nodes with
	// a ready endpoint of it.
	Local map[Key]map[string]bool
	// Subnets are those of the node that asks: an address is answered for in the
	// subnet that it is in.
	Subnets []netip.Prefix
	Taken   []Taken
}

// Elected says who answers for an address.
type Elected struct {
	Service Key
	Pool    string
	Node    string // empty: nobody can, or may: the ends of a subnet are no host's
	Subnet  netip.Prefix
}

// Elect finds the node that answers for each address which pools gave out. One
// that is in no subnet has no node and no valid Subnet.
func Elect(in Election) map[netip.Addr]Elected {
	pools, taken := read(in.Pools), index(in.Taken)
	chosen := map[string]labels.Selector{}
	for _, p := range pools {
		if s, err := labels.Parse(p.Nodes); err == nil {
			chosen[p.name] = s
		}
	}
	eligible := map[string][]string{} // by pool and subnet
	out := map[netip.Addr]Elected{}
	for key, s := range in.Services {
		for _, addr := range Addrs(s.Ours) {
			p := poolOf(pools, addr)
			if p == nil || p.Silent || chosen[p.name] == nil || !s.Balanced || taken.has(addr) {
				continue
			}
			if other, twice := out[addr]; twice && other.Service.compare(key) < 0 {
				continue // not of our making; all nodes have to choose the same
			}
			e := Elected{Service: key, Pool: p.name, Subnet: subnetOf(in.Subnets, addr)}
			if e.Subnet.IsValid() && usable(e.Subnet).contains(addr) {
				place := e.Pool + " " + e.Subnet.String()
				if _, known := eligible[place]; !known {
					eligible[place] = in.eligible(chosen[e.Pool], e.Subnet)
				}
				e.Node = winner(addr, eligible[place], func(node string) bool { return !s.Local || in.Local[key][node] })
			}
			out[addr] = e
		}
	}
	return out
}

func (k Key) compare(o Key) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// subnetOf is the longest of the subnets that contain a.
func subnetOf(list []netip.Prefix, a netip.Addr) netip.Prefix {
	var out netip.Prefix
	for _, p := range list {
		if p.Contains(a) && (!out.IsValid() || p.Bits() > out.Bits()) {
			out = p.Masked()
		}
	}
	return out
}

// eligible are the nodes that can answer in a subnet. If some nodes have their
// own address there, those without are taken to be elsewhere.
func (in Election) eligible(chosen labels.Selector, subnet netip.Prefix) []string {
	var all, there []string
	known := false
	for name, n := range in.Nodes {
		inside := slices.ContainsFunc(n.Addrs.All(), subnet.Contains)
		known = known || inside
		if !n.Alive || n.Apart || !matches(chosen, n.Labels) {
			continue
		}
		all = append(all, name)
		if inside {
			there = append(there, name)
		}
	}
	if known {
		return there
	}
	return all
}

// matches reads labels only where that makes a difference.
func matches(s labels.Selector, text string) bool {
	if s.Empty() {
		return true
	}
	set, err := labels.ConvertSelectorToLabelsMap(text)
	return err == nil && s.Matches(set)
}

// winner is, of those that can, the node with the highest number made from its
// name and the address (rendezvous hashing): addresses are spread, and a node that
// comes or goes moves only those that it gets or had.
func winner(addr netip.Addr, nodes []string, can func(node string) bool) string {
	best, most := "", uint64(0)
	for _, n := range nodes {
		if !can(n) {
			continue
		}
		if x := hash.Sum([]byte(n), addr.AsSlice()); best == "" || x > most || x == most && n < best {
			best, most = n, x
		}
	}
	return best
}

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const anotherRange = "give one cluster another range (install it with --set cluster.podCIDRs={…}), or leave them apart"

// overlap is a pair of prefixes that share addresses.
type overlap struct{ a, b netip.Prefix }

func overlaps(a, b []netip.Prefix) []overlap {
	var found []overlap
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				found = append(found, overlap{x, y})
			}
		}
	}
	return found
}

// checkRanges compares the pods of two clusters: each prefix must lead to one place, and there must be a way to talk.
func checkRanges(a, b clusterFacts) []problem {
	var problems []problem
	for _, o := range overlaps(b.PodCIDRs, a.PodCIDRs) {
		problems = append(problems, problem{Object: "peer " + b.Name, Remedy: anotherRange,
			What: fmt.Sprintf("podCIDR %s overlaps podCIDR %s of %s", o.a, o.b, a.Name)})
	}
	if !commonFamily(a.PodCIDRs, b.PodCIDRs) {
		problems = append(problems, problem{Object: both(a, b),
			What:   fmt.Sprintf("pods have no IP family in common: %s has %s, %s has %s", a.Name, list(a.PodCIDRs), b.Name, list(b.PodCIDRs)),
			Remedy: "make one of the clusters dual stack"})
	}
	return problems
}

func commonFamily(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool {
		return slices.ContainsFunc(b, func(y netip.Prefix) bool { return x.Addr().Is4() == y.Addr().Is4() })
	})
}

// checkServices compares the pods of one cluster with the services of the other. Services of both may be equal: a
// service address never leaves its cluster.
func checkServices(pods, services clusterFacts) []problem {
	var problems []problem
	for _, o := range overlaps(pods.PodCIDRs, services.ServiceCIDRs) {
		problems = append(problems, problem{Object: "peer " + pods.Name, Remedy: anotherRange,
			What: fmt.Sprintf("podCIDR %s overlaps serviceCIDR %s of %s", o.a, o.b, services.Name)})
	}
	return problems
}

// checkPeers compares joining with the peers that cluster has already.
func checkPeers(cluster, joining clusterFacts) []problem {
	var problems []problem
	for _, peer := range cluster.Peers {
		if peer.Name == joining.Name {
			continue
		}
		for _, o := range overlaps(joining.PodCIDRs, prefixes(peer.Spec.Import.PodCIDRs)) {
			problems = append(problems, problem{Object: "peer " + joining.Name,
				What:   fmt.Sprintf("podCIDR %s overlaps %s, which peer %s of %s may announce", o.a, o.b, peer.Name, cluster.Name),
				Remedy: fmt.Sprintf("%s, or run `clustermesh disconnect --context %s %s` first", anotherRange, cluster.Context, peer.Name)})
		}
	}
	return problems
}

// prefixes reads those that can be read. The API server refuses a Peer that has others, and says so in its status.
func prefixes(texts []string) []netip.Prefix {
	var read []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			read = append(read, p.Masked())
		}
	}
	return read
}

func masked(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Masked()
	}
	return out
}

func list(prefixes []netip.Prefix) string { return strings.Join(texts(prefixes), ", ") }

func texts(prefixes []netip.Prefix) []string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return out
}

// uncovered lists those of wanted that lie inside none of have.
func uncovered(wanted, have []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(wanted), func(w netip.Prefix) bool {
		return slices.ContainsFunc(have, func(h netip.Prefix) bool { return h.Bits() <= w.Bits() && h.Contains(w.Addr()) })
	})
}

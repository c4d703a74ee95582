package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	versions "k8s.io/apimachinery/pkg/util/version"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// pairFacts is all that preflight looks at: two clusters, and how each reaches the other's mesh API.
type pairFacts struct {
	Source, Destination clusterFacts
	// ToDestination was found out in a pod of the source, ToSource in one of the destination.
	ToDestination, ToSource []status.Probe
}

// preflight finds everything that keeps two clusters from being connected, so that a user repairs it in one go.
func preflight(p pairFacts) []problem {
	problems := slices.Concat(p.Source.Problems, p.Destination.Problems)
	if len(problems) > 0 {
		return problems
	}
	if same := checkSame(p.Source, p.Destination); len(same) > 0 {
		return same
	}
	return slices.Concat(
		checkVersions(p.Source, p.Destination),
		checkRanges(p.Source, p.Destination),
		checkServices(p.Source, p.Destination), checkServices(p.Destination, p.Source),
		checkPeers(p.Source, p.Destination), checkPeers(p.Destination, p.Source),
		checkNodes(p.Source, p.Destination),
		checkBackends(p.Source, p.Destination),
		checkEndpoints(p.Source, p.Destination, p.ToDestination, "--destination-endpoint"),
		checkEndpoints(p.Destination, p.Source, p.ToSource, "--source-endpoint"),
	)
}

// preflightSiblings compares two clusters that are to become peers of the same third one.
func preflightSiblings(a, b clusterFacts) []problem {
	if len(a.Problems)+len(b.Problems) > 0 {
		return nil // preflight of their own pairs says so
	}
	if same := checkSame(a, b); len(same) > 0 {
		return same
	}
	return checkRanges(a, b)
}

func both(a, b clusterFacts) string { return fmt.Sprintf("contexts %s and %s", a.Context, b.Context) }

// checkSame compares who they are. All else would be a consequence.
func checkSame(a, b clusterFacts) []problem {
	switch {
	case a.UID == b.UID:
		return []problem{{Object: both(a, b), What: fmt.Sprintf("are the same cluster (kube-system has UID %s in both)", a.UID),
			Remedy: "name two different clusters with --context and --destination-context"}}
	case a.Name == b.Name:
		return []problem{{Object: both(a, b), What: fmt.Sprintf("both clusters are named %q", a.Name),
			Remedy: "a cluster's name is unique in the mesh: reinstall one of them with `clustermesh install --cluster-name NAME`"}}
	}
	return nil
}

// checkVersions allows neighbouring minor versions, which is what is tested, and needs a common encoding of rows.
func checkVersions(a, b clusterFacts) []problem {
	upgrade := fmt.Sprintf("upgrade the older one with `clustermesh upgrade --context %s`", a.Context)
	va, errA := versions.ParseGeneric(a.Version)
	vb, errB := versions.ParseGeneric(b.Version)
	if errA == nil && errB == nil && vb.LessThan(va) {
		upgrade = fmt.Sprintf("upgrade the older one with `clustermesh upgrade --context %s`", b.Context)
	}
	if a.MaxWire != 0 && b.MaxWire != 0 && (a.MaxWire < b.MinWire || b.MaxWire < a.MinWire) {
		return []problem{{Object: both(a, b), Remedy: upgrade,
			What: fmt.Sprintf("have no encoding in common: %s (clustermesh %s) reads %d to %d, %s (%s) reads %d to %d",
				a.Name, a.Version, a.MinWire, a.MaxWire, b.Name, b.Version, b.MinWire, b.MaxWire)}}
	}
	if errA != nil || errB != nil {
		return []problem{{Object: both(a, b), Warning: true, Remedy: "make sure that they are at most one minor version apart",
			What: fmt.Sprintf("versions %q and %q can't be compared", a.Version, b.Version)}}
	}
	apart := int(va.Minor()) - int(vb.Minor())
	if va.Major() == vb.Major() && apart >= -1 && apart <= 1 {
		return nil
	}
	return []problem{{Object: both(a, b), Remedy: upgrade,
		What: fmt.Sprintf("clustermesh %s and %s are more than one minor version apart", a.Version, b.Version)}}
}

// checkNodes finds addresses that lead to two places. Clusters may share a subnet of nodes, not an address.
func checkNodes(a, b clusterFacts) []problem {
	owners := map[netip.Addr]string{}
	for _, node := range a.Nodes {
		for _, addr := range node.Addrs {
			owners[addr] = node.Name
		}
	}
	var problems []problem
	for _, node := range b.Nodes {
		for _, addr := range node.Addrs {
			if owner, taken := owners[addr]; taken {
				problems = append(problems, problem{Object: fmt.Sprintf("node %s of %s", node.Name, b.Name),
					What:   fmt.Sprintf("address %s is also that of node %s of %s", addr, owner, a.Name),
					Remedy: "nodes reach each other directly, so each needs an address of its own: give kubelet another --node-ip"})
			}
		}
	}
	return slices.Concat(problems, checkNodesInside(a, b), checkNodesInside(b, a))
}

// checkNodesInside finds nodes of b that a's pod CIDRs would swallow.
func checkNodesInside(a, b clusterFacts) []problem {
	for _, cidr := range a.PodCIDRs {
		for _, node := range b.Nodes {
			if i := slices.IndexFunc(node.Addrs, cidr.Contains); i >= 0 {
				return []problem{{Object: fmt.Sprintf("node %s of %s", node.Name, b.Name), Remedy: anotherRange,
					What: fmt.Sprintf("address %s lies inside podCIDR %s of %s", node.Addrs[i], cidr, a.Name)}}
			}
		}
	}
	return nil
}

// checkBackends warns where no tunnel is possible: if one end is direct, both send directly (see plan.Routes), which
// needs a common link. Whether there is one, only the nodes can see.
func checkBackends(a, b clusterFacts) []problem {
	direct, other := a, b
	if a.Backend != model.EncapDirect {
		direct, other = b, a
	}
	if direct.Backend != model.EncapDirect {
		return nil
	}
	return []problem{{Object: "cluster " + direct.Name, Warning: true,
		What:   fmt.Sprintf("routing.backend is direct, so its nodes and those of %s reach each other's pods only where they share a link", other.Name),
		Remedy: fmt.Sprintf("if they do not, run `clustermesh upgrade --context %s --set routing.backend=auto`", direct.Context)}}
}

// checkEndpoints judges what pods of from found out about the mesh API of to. One working endpoint is enough.
func checkEndpoints(from, to clusterFacts, probes []status.Probe, override string) []problem {
	if len(probes) == 0 {
		return []problem{{Object: "cluster " + to.Name, What: "tells no endpoint of its mesh API",
			Remedy: fmt.Sprintf("give one with %s HOST:PORT, or for good with `clustermesh upgrade --context %s --set apiserver.advertise={HOST:PORT}`", override, to.Context)}}
	}
	some := slices.ContainsFunc(probes, func(p status.Probe) bool { return p.Reachable })
	var problems []problem
	for _, probe := range probes {
		if !probe.Reachable {
			problems = append(problems, problem{Object: "cluster " + to.Name, Warning: some, Remedy: reachRemedy(from, probe, override),
				What: fmt.Sprintf("endpoint %s is unreachable from %s: %s", probe.Endpoint, from.Name, probe.Error)})
		}
	}
	return problems
}

func reachRemedy(from clusterFacts, probe status.Probe, override string) string {
	if i := len(probe.Steps) - 1; i >= 0 && probe.Steps[i].Name == status.ProbeCertificate {
		return fmt.Sprintf("something else answers there: check the address, or give another one with %s HOST:PORT", override)
	}
	port := probe.Endpoint[strings.LastIndex(probe.Endpoint, ":")+1:]
	return fmt.Sprintf("let the nodes of %s reach it on TCP port %s, or give another endpoint with %s HOST:PORT", from.Name, port, override)
}

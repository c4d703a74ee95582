package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Counters of dropped packets, by reason.
const (
	dropPodSource  = "drop_pod_source"  // from a pod, with a source that is not the pod's
	dropPodND      = "drop_pod_nd"      // router or neighbour discovery from a pod
	dropPodARP     = "drop_pod_arp"     // ARP from a pod
	dropPodTunnel  = "drop_pod_tunnel"  // from a pod to the VXLAN port of a node
	dropDecapPod   = "drop_decap_pod"   // to our VXLAN port from a pod, or out of the tunnel itself
	dropDecapVNI   = "drop_decap_vni"   // another network's
	dropDecapOuter = "drop_decap_outer" // from an address that is no node's
	dropDecapInner = "drop_decap_inner" // from a node, with a source inside that is not of its pods
)

// table is what one nft table should hold, apart from set elements.
type table struct {
	family   nftables.TableFamily
	name     string
	chains   []chain
	sets     []*nftables.Set
	counters []string
}

// chain is a list of rules. A base chain has a hook.
type chain struct {
	name     string
	kind     nftables.ChainType // empty: only jumped to
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	rules    []rule
}

type rule struct {
	comment string
	exprs   exprs
}

const (
	tableName = "clustermesh"

	arpIn nftables.ChainHook = 0 // NF_ARP_IN of <linux/netfilter_arp.h>
)

// skeleton is everything but the elements. What it depends on is in r, so two
// agents with the same version and configuration make the same.
func skeleton(r plan.Rules) []table {
	chains := []chain{
		{name: "about", rules: []rule{{about(r), leave()}}},
		{"prerouting", nftables.ChainTypeFilter, *nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, prerouting(r)},
		{name: "from_pod", rules: fromPod()},
		{"postrouting", nftables.ChainTypeNAT, *nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, postrouting(r)},
	}
	if r.Tunnel {
		chains = append(chains,
			chain{"output", nftables.ChainTypeFilter, *nftables.ChainHookOutput, *nftables.ChainPriorityRaw, output(r)},
			chain{"input", nftables.ChainTypeFilter, *nftables.ChainHookInput, *nftables.ChainPriorityFilter,
				[]rule{{"outer VXLAN packets for this node", join(udpTo(r.Port), jump("decap"))}}},
			chain{name: "decap", rules: decap(r)},
			chain{"forward", nftables.ChainTypeFilter, *nftables.ChainHookForward, *nftables.ChainPriorityFilter, forward(r)})
	}
	arp := chain{"input", nftables.ChainTypeFilter, arpIn, *nftables.ChainPriorityFilter,
		[]rule{{"pods know their neighbours and have nothing to tell", join(fromDevices(plan.IfPrefix), drop(dropPodARP))}}}
	inet := table{nftables.TableFamilyINet, tableName, chains, allSets(),
		[]string{dropPodSource, dropPodND, dropPodTunnel, dropDecapPod, dropDecapVNI, dropDecapOuter, dropDecapInner}}
	return []table{inet, {nftables.TableFamilyARP, tableName, []chain{arp}, nil, []string{dropPodARP}}}
}

// about says what the rules were made for, readable for people and for the
// next agent.
func about(r plan.Rules) string {
	return fmt.Sprintf("clustermesh tunnel=%t port=%d vni=%d masquerade=%t", r.Tunnel, r.Port, r.VNI, r.Masquerade)
}

func parseAbout(s string) (r plan.Rules, ok bool) {
	_, err := fmt.Sscanf(s, "clustermesh tunnel=%t port=%d vni=%d masquerade=%t", &r.Tunnel, &r.Port, &r.VNI, &r.Masquerade)
	return r, err == nil
}

func prerouting(r plan.Rules) []rule {
	rules := []rule{
		{"checked before it was encapsulated", join(fromDevice(plan.TunnelName), leave())},
		{"", join(fromDevices(plan.IfPrefix), jump("from_pod"))},
	}
	if r.Tunnel {
		rules = append(rules,
			rule{"outer VXLAN", join(isIPv4(), udpTo(r.Port), src4(reg0), in(plan.Nodes4), notrack())},
			rule{"outer VXLAN", join(isIPv6(), udpTo(r.Port), src6(reg0), in(plan.Nodes6), notrack())})
	}
	return rules
}

// fromPod lets through what a pod sends with its own address. A pod that is not
// programmed yet has none, so all that it sends is dropped.
func fromPod() []rule {
	const routerSolicitation, redirect = 133, 137 // RFC 4861, section 4: 133 to 137
	device := exprs{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0}}
	return []rule{
		{"router and neighbour discovery", join(isIPv6(), metaIs(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6}),
			transport(0, 1, reg0),
			exprs{&expr.Range{Op: expr.CmpOpEq, Register: reg0, FromData: []byte{routerSolicitation}, ToData: []byte{redirect}}},
			drop(dropPodND))},
		{"", join(isIPv4(), device, src4(reg4), in(plan.Pods4), leave())},
		{"", join(isIPv6(), device, src6(reg4), in(plan.Pods6), leave())},
		{"not the pod's own address, or a pod that is not programmed", drop(dropPodSource)},
	}
}

func output(r plan.Rules) []rule {
	return []rule{
		{"outer VXLAN", join(isIPv4(), udpTo(r.Port), dst4(reg0), in(plan.Nodes4), notrack())},
		{"outer VXLAN", join(isIPv6(), udpTo(r.Port), dst6(reg0), in(plan.Nodes6), notrack())},
	}
}

// decap decides on outer VXLAN packets before the tunnel device sees them: from
// a known node, our VNI, and inside a source that is one of that node's pods.
func decap(r plan.Rules) []rule {
	vni := []byte{byte(r.VNI >> 16), byte(r.VNI >> 8), byte(r.VNI)}
	pair := func(family, outer exprs, typ uint16, inner exprs, set plan.Set) rule {
		return rule{"", join(family, etherType(typ), outer, inner, in(set), leave())}
	}
	inner4 := func(register uint32) exprs { return transport(inner4SrcOffset, 4, register) }
	inner6 := func(register uint32) exprs { return transport(inner6SrcOffset, 16, register) }
	return []rule{
		{"never from a pod", join(fromDevices(plan.IfPrefix), drop(dropDecapPod))},
		{"not our network", join(transport(vniOffset, 3, reg0), notEqual(vni), drop(dropDecapVNI))},
		{"not a node", join(isIPv4(), src4(reg0), notIn(plan.Nodes4), drop(dropDecapOuter))},
		{"not a node", join(isIPv6(), src6(reg0), notIn(plan.Nodes6), drop(dropDecapOuter))},
		pair(isIPv4(), src4(reg0), unix.ETH_P_IP, inner4(reg1), plan.Decap44),
		pair(isIPv4(), src4(reg0), unix.ETH_P_IPV6, inner6(reg1), plan.Decap46),
		pair(isIPv6(), src6(reg0), unix.ETH_P_IP, inner4(reg4), plan.Decap64),
		pair(isIPv6(), src6(reg0), unix.ETH_P_IPV6, inner6(reg4), plan.Decap66),
		{"not a pod of that node", drop(dropDecapInner)},
	}
}

// forward keeps pods from the VXLAN ports of nodes. Masquerading would give
// their packets the source of this node, which others decapsulate from.
func forward(r plan.Rules) []rule {
	head := join(fromDevices(plan.IfPrefix), udpTo(r.Port))
	return []rule{
		{"pods do not speak VXLAN to nodes", join(isIPv4(), head, dst4(reg0), in(plan.Nodes4), drop(dropPodTunnel))},
		{"pods do not speak VXLAN to nodes", join(isIPv6(), head, dst6(reg0), in(plan.Nodes6), drop(dropPodTunnel))},
	}
}

func postrouting(r plan.Rules) []rule {
	var rules []rule
	if r.Tunnel {
		// The other end takes only sources out of our pod prefix; this is
		// for what the host, or containers that are not pods, send otherwise.
		into := toDevice(plan.TunnelName)
		rules = append(rules,
			rule{"not a pod, into the tunnel", join(into, isIPv4(), src4(reg0), notIn(plan.Local4), exprs{&expr.Masq{}})},
			rule{"not a pod, into the tunnel", join(into, isIPv6(), src6(reg0), notIn(plan.Local6), exprs{&expr.Masq{}})})
	}
	if !r.Masquerade {
		return rules
	}
	outside := func(family, src, dst exprs, local, mesh, direct plan.Set) []rule {
		return []rule{
			{"", join(family, src, notIn(local), leave())},
			{"pods of the mesh see pods' own addresses", join(family, dst, in(mesh), leave())},
			{"so do nodes that have a route back", join(family, dst, in(direct), leave())},
			{"pods to outside the mesh", join(family, exprs{&expr.Masq{FullyRandom: true}})},
		}
	}
	rules = append(rules, rule{"", join(toDevices(plan.IfPrefix), leave())})
	return slices.Concat(rules,
		outside(isIPv4(), src4(reg0), dst4(reg0), plan.Local4, plan.Mesh4, plan.Direct4),
		outside(isIPv6(), src6(reg0), dst6(reg0), plan.Local6, plan.Mesh6, plan.Direct6))
}

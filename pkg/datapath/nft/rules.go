package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Counters of dropped packets, by reason.
const (
	dropPodSource   = "drop_pod_source"   // from a pod, with a source that is not the pod's
	dropPodND       = "drop_pod_nd"       // router or neighbour discovery from a pod
	dropPodGroup    = "drop_pod_group"    // multicast on a pod's link: listener reports and the like, which nobody needs
	dropPodARP      = "drop_pod_arp"      // ARP from a pod
	dropPodTunnel   = "drop_pod_tunnel"   // from a pod to the VXLAN port of a node
	dropDecapPod    = "drop_decap_pod"    // to our VXLAN port from a pod, or out of the tunnel itself
	dropDecapVNI    = "drop_decap_vni"    // another network's
	dropDecapOuter  = "drop_decap_outer"  // from an address that is no node's
	dropDecapInner  = "drop_decap_inner"  // from a node, with a source inside that is not of its pods
	dropDecapTarget = "drop_decap_target" // out of the tunnel, to something else than a pod here

	dropUnderlaySource = "drop_underlay_source" // from the underlay, as one of our own pods
)

// table is what one nft table should hold, apart from set elements.
type table struct {
	family   nftables.TableFamily
	name     string
	chains   []chain
	sets     []*nftables.Set
	counters []string
}

func (t table) id() tableID { return tableID{t.family, t.name} }

// inetTable is where all sets of the filter are.
var inetTable = tableID{nftables.TableFamilyINet, tableName}

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
				[]rule{
					{"outer VXLAN packets for this node", join(udpTo(r.Port), jump("decap"))},
					{"out of the tunnel to the node itself: answers only", join(fromDevice(plan.TunnelName), stateNew(), drop(dropDecapTarget))},
				}},
			chain{name: "decap", rules: decap(r)})
	}
	chains = append(chains,
		chain{name: "refuse", rules: refuse()},
		chain{"forward", nftables.ChainTypeFilter, *nftables.ChainHookForward, *nftables.ChainPriorityFilter, slices.Concat(forward(r), announced(true))},
		chain{"own", nftables.ChainTypeFilter, *nftables.ChainHookOutput, *nftables.ChainPriorityFilter, announced(false)})
	if r.Tunnel {
		chains = append(chains, inner(r)...)
	}
	arp := chain{"input", nftables.ChainTypeFilter, arpIn, *nftables.ChainPriorityFilter,
		[]rule{{"pods know their neighbours and have nothing to tell", join(fromDevices(plan.IfPrefix), drop(dropPodARP))}}}
	inet := table{nftables.TableFamilyINet, tableName, chains, allSets(),
		[]string{dropPodSource, dropPodND, dropPodGroup, dropPodTunnel, dropDecapPod, dropDecapVNI, dropDecapOuter, dropDecapInner, dropDecapTarget, dropUnderlaySource}}
	return []table{inet, {nftables.TableFamilyARP, tableName, []chain{arp}, nil, []string{dropPodARP}}}
}

// aboutFormat is what about writes and parseAbout reads. nft takes 128
// bytes at most.
const aboutFormat = "clustermesh tunnel=%t port=%d vni=%d masquerade=%t services=%t inner4=%x.%x inner6=%x.%x"

// about says what the rules were made for, readable for people and for the
// next agent.
func about(r plan.Rules) string {
	return fmt.Sprintf(aboutFormat, r.Tunnel, r.Port, r.VNI, r.Masquerade, r.Services, r.Inner4[1], r.Inner4[0], r.Inner6[1], r.Inner6[0])
}

// parseAbout reads what an agent of any version wrote: what it does not know is
// passed over, and what is not there counts as nothing.
func parseAbout(s string) (r plan.Rules, ok bool) {
	fields := strings.Fields(s)
	if len(fields) == 0 || fields[0] != "clustermesh" {
		return plan.Rules{}, false
	}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		into := map[string][]any{"tunnel": {&r.Tunnel}, "port": {&r.Port}, "vni": {&r.VNI}, "masquerade": {&r.Masquerade}, "services": {&r.Services},
			"inner4": {&r.Inner4[1], &r.Inner4[0]}, "inner6": {&r.Inner6[1], &r.Inner6[0]}}[key]
		format := "%v"
		if len(into) == 2 {
			format = "%x.%x"
		}
		if _, err := fmt.Sscanf(value, format, into...); err != nil && into != nil {
			return plan.Rules{}, false
		}
	}
	return r, true
}

func prerouting(r plan.Rules) []rule {
	var rules []rule
	if r.Tunnel {
		// A node of a peer must not reach through us what the underlay keeps it from.
		rules = append(rules,
			rule{"out of the tunnel, where the source was checked", join(isIPv4(), fromDevice(plan.TunnelName), dst4(reg0), in(plan.Local4), leave())},
			rule{"out of the tunnel, where the source was checked", join(isIPv6(), fromDevice(plan.TunnelName), dst6(reg0), in(plan.Local6), leave())})
	}
	rules = append(rules,
		rule{"not to a pod here", join(fromDevice(plan.TunnelName), drop(dropDecapTarget))},
		rule{"", join(fromDevices(plan.IfPrefix), jump("from_pod"))},
		rule{"from outside as one of our pods", join(fromUnderlay(), isIPv4(), src4(reg0), in(plan.Local4), drop(dropUnderlaySource))},
		rule{"from outside as one of our pods", join(fromUnderlay(), isIPv6(), src6(reg0), in(plan.Local6), drop(dropUnderlaySource))})
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
		{"multicast on the link, harmless", join(isIPv6(), network(outer6DstOffset, 2, reg0), equal([]byte{0xff, 0x02}), drop(dropPodGroup))},
		{"", join(isIPv4(), device, src4(reg4), in(plan.Pods4), leave())},
		{"", join(isIPv6(), device, src6(reg4), in(plan.Pods6), leave())},
		{"not the pod's own address, or a pod that is not programmed", drop(dropPodSource)},
	}
}

// fromUnderlay is true of what comes neither from a device of ours nor from the
// host itself, which talks to itself with any of its addresses.
func fromUnderlay() exprs {
	return join(metaIsNot(expr.MetaKeyIIFNAME, []byte(plan.IfPrefix)), metaIsNot(expr.MetaKeyIIFNAME, deviceName("lo")))
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
	return []rule{
		{"never from a pod", join(fromDevices(plan.IfPrefix), drop(dropDecapPod))},
		{"not our network", join(transport(vniOffset, 3, reg0), notEqual(vni), drop(dropDecapVNI))},
		{"not a node", join(isIPv4(), src4(reg0), notIn(plan.Nodes4), drop(dropDecapOuter))},
		{"not a node", join(isIPv6(), src6(reg0), notIn(plan.Nodes6), drop(dropDecapOuter))},
		{"", join(isIPv4(), etherType(unix.ETH_P_IP), jump(string(plan.Decap44)))},
		{"", join(isIPv4(), etherType(unix.ETH_P_IPV6), jump(string(plan.Decap46)))},
		{"", join(isIPv6(), etherType(unix.ETH_P_IP), jump(string(plan.Decap64)))},
		{"", join(isIPv6(), etherType(unix.ETH_P_IPV6), jump(string(plan.Decap66)))},
		{"not a pod of that node", drop(dropDecapInner)},
	}
}

// inner are the chains that look up outer source, inner network and its length,
// one rule for each length in use. A set of intervals would need one rule only,
// but taking an element out of one with 5,000 costs 44 ms (Linux 6.18,
// nft_pipapo_remove), against 0.1 ms here.
func inner(r plan.Rules) []chain {
	pair := func(set plan.Set, outer, inner exprs, lengths plan.Lengths, at, behind uint32, bytes int) chain {
		c := chain{name: string(set)}
		for _, bits := range lengths.All() {
			c.rules = append(c.rules, rule{fmt.Sprintf("pods of a /%d", bits),
				join(outer, inner, masked(at, bytes, bits), constant(behind, lengthKey(bits)), in(set), verdict(expr.VerdictAccept))})
		}
		return c
	}
	from4 := func(register uint32) exprs { return transport(inner4SrcOffset, 4, register) }
	from6 := func(register uint32) exprs { return transport(inner6SrcOffset, 16, register) }
	return []chain{
		pair(plan.Decap44, src4(reg0), from4(reg1), r.Inner4, reg1, reg2, 4),
		pair(plan.Decap46, src4(reg0), from6(reg1), r.Inner6, reg1, reg5, 16),
		pair(plan.Decap64, src6(reg0), from4(reg4), r.Inner4, reg4, reg5, 4),
		pair(plan.Decap66, src6(reg0), from6(reg4), r.Inner6, reg4, reg8, 16),
	}
}

// forward keeps pods from VXLAN ports outside of the mesh, whoever has the
// address: masquerading would give their packets the source of this node, which
// others decapsulate from. And what comes out of the tunnel goes to a pod here,
// also where something has changed its destination since prerouting, unless it
// answers what somebody outside has asked a Service for.
func forward(r plan.Rules) []rule {
	if !r.Tunnel {
		return nil
	}
	head := join(fromDevices(plan.IfPrefix), udpTo(r.Port))
	return []rule{
		{"pods do not speak VXLAN to nodes", join(isIPv4(), head, dst4(reg0), notIn(plan.Mesh4), drop(dropPodTunnel))},
		{"pods do not speak VXLAN to nodes", join(isIPv6(), head, dst6(reg0), notIn(plan.Mesh6), drop(dropPodTunnel))},
		{"not to a pod here", join(isIPv4(), fromDevice(plan.TunnelName), stateNew(), dst4(reg0), notIn(plan.Local4), drop(dropDecapTarget))},
		{"not to a pod here", join(isIPv6(), fromDevice(plan.TunnelName), stateNew(), dst6(reg0), notIn(plan.Local6), drop(dropDecapTarget))},
	}
}

// announced tells who sends to an address of a load balancer that no Service has
// this port there. Whatever a Service takes has another destination by now, be it
// our rules that say so or kube-proxy's. Nothing else may take the packet: the
// route to the address is there for the sake of ARP, and leads nowhere. For IPv4
// it leads there by lo. What is forwarded to lo is refused whether the set has
// the address or not: nothing else is routed so, and when an address goes, its
// route may go last.
func announced(forwarded bool) []rule {
	to4 := join(isIPv4(), toDevice("lo"))
	if !forwarded { // the host talks to itself by lo
		to4 = join(to4, dst4(reg0), in(plan.Announced4))
	}
	return []rule{
		{"no Service has this port", join(to4, jump("refuse"))},
		{"no Service has this port", join(isIPv6(), dst6(reg0), in(plan.Announced6), jump("refuse"))},
	}
}

func postrouting(r plan.Rules) []rule {
	var rules []rule
	if r.Services {
		rules = append(rules, toServices()...)
	}
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

// toServices gives connections the node's address whose answers would not come
// back here, where they have to be translated.
func toServices() []rule {
	device := exprs{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg0}}
	outside := join(translated(), exprs{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0}}, notEqual(make([]byte, 4)), // not from the node itself
		metaIsNot(expr.MetaKeyIIFNAME, []byte(plan.IfPrefix)))
	return []rule{
		{"a pod to itself, by a Service", join(translated(), isIPv4(), device, src4(reg4), in(plan.Pods4), exprs{&expr.Masq{}})},
		{"a pod to itself, by a Service", join(translated(), isIPv6(), device, src6(reg4), in(plan.Pods6), exprs{&expr.Masq{}})},
		{"from outside, by a Service, to another node", join(outside, metaIsNot(expr.MetaKeyOIFNAME, []byte(plan.IfPrefix)), exprs{&expr.Masq{FullyRandom: true}})},
		{"from outside, by a Service, into the tunnel", join(outside, toDevice(plan.TunnelName), exprs{&expr.Masq{FullyRandom: true}})},
	}
}

package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// HostPort is a port of the node that leads to a port of a pod.
type HostPort struct {
	Protocol        uint8 // IANA number: 6 TCP, 17 UDP, 132 SCTP
	Host, Container uint16
	Addr            netip.Addr // of the node; invalid: every one
}

// JoinHostPorts writes ports as Pod.HostPorts holds them, so that pods can be
// compared: "PROTOCOL/HOST:CONTAINER[@ADDRESS]", sorted, separated by spaces.
func JoinHostPorts(ports []HostPort) string {
	texts := make([]string, 0, len(ports))
	for _, p := range ports {
		text := fmt.Sprintf("%d/%d:%d", p.Protocol, p.Host, p.Container)
		if p.Addr.IsValid() {
			text += "@" + p.Addr.String()
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), " ")
}

// ParseHostPorts reads what JoinHostPorts wrote. What it does not understand it
// leaves out: the text may be out of a file of another version.
func ParseHostPorts(list string) []HostPort {
	var out []HostPort
	for _, text := range strings.Fields(list) {
		rest, at, hasAddr := strings.Cut(text, "@")
		protocol, ports, _ := strings.Cut(rest, "/")
		host, container, _ := strings.Cut(ports, ":")
		n, err1 := strconv.ParseUint(protocol, 10, 8)
		h, err2 := strconv.ParseUint(host, 10, 16)
		c, err3 := strconv.ParseUint(container, 10, 16)
		addr, err4 := netip.ParseAddr(at)
		if err1 != nil || err2 != nil || err3 != nil || hasAddr && err4 != nil {
			continue
		}
		out = append(out, HostPort{uint8(n), uint16(h), uint16(c), addr})
	}
	return out
}

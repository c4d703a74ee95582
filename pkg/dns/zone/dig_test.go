package zone

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Dig writes a message in few lines. Addresses, whose order is random, are sorted.
func Dig(m *dns.Msg) string {
	var b strings.Builder
	var flags []string
	for name, on := range map[string]bool{"qr": m.Response, "aa": m.Authoritative, "tc": m.Truncated, "rd": m.RecursionDesired, "ra": m.RecursionAvailable, "cd": m.CheckingDisabled} {
		if on {
			flags = append(flags, name)
		}
	}
	slices.Sort(flags)
	rcode := dns.RcodeToString[m.Rcode]
	if m.Rcode == dns.RcodeBadVers {
		rcode = "BADVERS" // BADSIG of TSIG has the same number
	}
	fmt.Fprintf(&b, ";; %s; %s\n", rcode, strings.Join(flags, " "))
	for _, s := range []struct {
		name string
		list []dns.RR
	}{{"", m.Answer}, {";; authority\n", m.Ns}, {";; additional\n", m.Extra}} {
		var lines []string
		for _, rr := range s.list {
			if o, ok := rr.(*dns.OPT); ok {
				lines = append(lines, fmt.Sprintf(";; EDNS: version %d; udp %d; do %v", o.Version(), o.UDPSize(), o.Do()))
				continue
			}
			lines = append(lines, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		slices.Sort(lines)
		if len(lines) > 12 {
			lines = append(lines[:0], fmt.Sprintf(";; %d records like %s", len(lines), strings.Fields(lines[0])[3]))
		}
		if len(lines) > 0 {
			b.WriteString(s.name + strings.Join(lines, "\n") + "\n")
		}
	}
	return b.String()
}

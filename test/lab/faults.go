package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Everyone as an end of a cut means all other nodes, and the fabric itself.
const Everyone = "*"

// faultRules is the table of cuts, in the fabric: pairs of ports for what is
// bridged, pairs of nodes' addresses for what is routed, and the ports that are
// cut from everyone. Sets are the state, which flush leaves alone; a cut adds
// elements, a heal takes them.
const faultRules = `
table bridge faults
flush table bridge faults
table inet faults
flush table inet faults
table bridge faults {
	set pairs { type ifname . ifname; }
	set alone { type ifname; }
	chain forward {
		type filter hook forward priority 0;
		iifname . oifname @pairs drop
		iifname @alone drop
		oifname @alone drop
	}
	chain input {
		type filter hook input priority 0;
		iifname @alone drop
	}
	chain output {
		type filter hook output priority 0;
		oifname @alone drop
	}
}
table inet faults {
	set pairs4 { type ipv4_addr . ipv4_addr; }
	set pairs6 { type ipv6_addr . ipv6_addr; }
	chain forward {
		type filter hook forward priority 0;
		ip saddr . ip daddr @pairs4 drop
		ip6 saddr . ip6 daddr @pairs6 drop
	}
}
`

// Cut drops every packet between two ends: names of nodes or clusters, or
// Everyone for one of them. The nodes see no carrier change: it is the network
// between them that fails. Cutting twice is cutting once.
func (l *Lab) Cut(ctx context.Context, a, b string) error {
	if err := l.change(ctx, a, b, false); err != nil {
		return fmt.Errorf("cut %s from %s: %w", a, b, err)
	}
	return nil
}

// Heal undoes a Cut of the same ends. Healing what is whole does nothing.
func (l *Lab) Heal(ctx context.Context, a, b string) error {
	if err := l.change(ctx, a, b, true); err != nil {
		return fmt.Errorf("heal %s to %s: %w", a, b, err)
	}
	return nil
}

// HealAll undoes every cut.
func (l *Lab) HealAll(ctx context.Context) error {
	return l.nft(ctx, "table bridge faults\ndelete table bridge faults\ntable inet faults\ndelete table inet faults\n")
}

func (l *Lab) change(ctx context.Context, a, b string, heal bool) error {
	if b != Everyone && a == Everyone {
		a, b = b, a
	}
	left, err := l.ends(a)
	if err != nil {
		return err
	}
	var elements []string
	if b == Everyone {
		for _, n := range left {
			elements = append(elements, fmt.Sprintf("element bridge faults alone { %q }", n.Name))
		}
	} else {
		right, err := l.ends(b)
		if err != nil {
			return err
		}
		for _, x := range left {
			for _, y := range right {
				elements = append(elements, pairElements(x, y)...)
			}
		}
	}
	return l.nft(ctx, faultScript(elements, heal))
}

// faultScript adds or deletes elements. An absent one cannot be deleted, so a
// deletion adds first; nft makes all of a script at once or nothing.
func faultScript(elements []string, heal bool) string {
	var s strings.Builder
	s.WriteString(faultRules)
	for _, e := range elements {
		s.WriteString("add " + e + "\n")
		if heal {
			s.WriteString("delete " + e + "\n")
		}
	}
	return s.String()
}

// pairElements are the set elements for both directions between two nodes.
func pairElements(x, y *Node) []string {
	if x == y {
		return nil
	}
	elements := []string{
		fmt.Sprintf("element bridge faults pairs { %q . %q }", x.Name, y.Name),
		fmt.Sprintf("element bridge faults pairs { %q . %q }", y.Name, x.Name),
	}
	both := func(set string, a, b netip.Addr) {
		if a.IsValid() && b.IsValid() {
			elements = append(elements,
				fmt.Sprintf("element inet faults %s { %s . %s }", set, a, b),
				fmt.Sprintf("element inet faults %s { %s . %s }", set, b, a))
		}
	}
	both("pairs4", x.Addrs.V4, y.Addrs.V4)
	both("pairs6", x.Addrs.V6, y.Addrs.V6)
	return elements
}

// ends gives the nodes a name stands for: a cluster's or the one.
func (l *Lab) ends(name string) ([]*Node, error) {
	for _, c := range l.Clusters {
		if c.Name == name {
			return c.Nodes, nil
		}
		for _, n := range c.Nodes {
			if n.Name == name {
				return []*Node{n}, nil
			}
		}
	}
	return nil, fmt.Errorf("find %q: it is neither a node nor a cluster of lab %s", name, l.cfg.Name)
}

func (l *Lab) nft(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+netnsPath(l.FabricNetns()), "--", "nft", "-f", "-")
	cmd.Env = []string{"PATH=" + toolPath}
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run nft in %s: %w: %s", l.FabricNetns(), err, lastLines(string(out)))
	}
	return nil
}

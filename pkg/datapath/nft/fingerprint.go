package nft

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// Every rule carries a comment that ends in a hash of what the rule does. nft
// cannot edit a rule and keep its comment, so the comments in their order, with
// the chains, tell whether the rules are the ones we would make: a restarted
// agent recognises its own, an upgraded one sees that they differ, and an
// inserted, deleted or replaced rule shows.

// mark returns the comment of a rule.
func mark(family nftables.TableFamily, r rule) (string, error) {
	h := sha256.New()
	for _, e := range r.exprs {
		b, err := expr.Marshal(byte(family), e)
		if err != nil {
			return "", fmt.Errorf("encode nft rule %q: %w", r.comment, err)
		}
		h.Write(b)
	}
	if r.comment == "" {
		return fmt.Sprintf("#%x", h.Sum(nil)[:4]), nil
	}
	return fmt.Sprintf("%s #%x", r.comment, h.Sum(nil)[:4]), nil
}

// wantedLines describes a table as it should be.
func wantedLines(t table) ([]string, error) {
	var out []string
	for _, c := range t.chains {
		out = append(out, chainLine(infoOf(c)))
		for i, r := range c.rules {
			m, err := mark(t.family, r)
			if err != nil {
				return nil, err
			}
			out = append(out, ruleLine(c.name, i, m))
		}
	}
	for _, s := range t.sets {
		out = append(out, "set "+s.Name)
	}
	for _, c := range t.counters {
		out = append(out, "counter "+c)
	}
	slices.Sort(out)
	return out, nil
}

// actualLines describes a table as it is.
func actualLines(c *nl.Conn, want table) ([]string, error) {
	chains, err := readChains(c, want.id())
	if err != nil {
		return nil, err
	}
	rules, err := readRules(c, want.id())
	if err != nil {
		return nil, err
	}
	sets, err := readSets(c, want.id())
	if err != nil {
		return nil, err
	}
	counters, err := readCounters(c, want.id())
	if err != nil {
		return nil, err
	}
	var out []string
	for _, x := range chains {
		out = append(out, chainLine(x))
	}
	n := map[string]int{}
	for _, r := range rules {
		out = append(out, ruleLine(r.chain, n[r.chain], r.comment))
		n[r.chain]++
	}
	for _, s := range sets {
		line := "set " + s.name
		if !sameShape(s, want.sets) {
			line += " of another shape"
		}
		out = append(out, line)
	}
	for name := range counters {
		out = append(out, "counter "+name)
	}
	slices.Sort(out)
	return out, nil
}

func infoOf(c chain) chainInfo {
	if c.kind == "" {
		return chainInfo{name: c.name}
	}
	return chainInfo{name: c.name, kind: string(c.kind), base: true, hook: uint32(c.hook), priority: uint32(c.priority),
		policy: uint32(nftables.ChainPolicyAccept)}
}

func chainLine(x chainInfo) string {
	return fmt.Sprintf("chain %s %s base=%t hook=%d priority=%d policy=%d", x.name, x.kind, x.base, x.hook, int32(x.priority), x.policy)
}

func ruleLine(chain string, i int, comment string) string {
	return fmt.Sprintf("rule %s %03d %s", chain, i, comment)
}

// Held returns what the rules in a namespace were made for, whoever changed
// them since; the zero Rules if there are none.
func Held(space nl.Space) (plan.Rules, error) {
	c, err := space.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return plan.Rules{}, err
	}
	defer c.Close()
	comment, err := readAbout(c, inetTable)
	row, ok := parseAbout(comment)
	if !ok {
		row = plan.Rules{}
	}
	return row, err
}

// readAbout reads the comment of the rule that says what the others of a table
// were made for; empty if there is none.
func readAbout(c *nl.Conn, at tableID) (string, error) {
	rules, err := readRules(c, at)
	if err != nil {
		return "", err
	}
	if i := slices.IndexFunc(rules, func(r ruleInfo) bool { return r.chain == "about" }); i >= 0 {
		return rules[i].comment, nil
	}
	return "", nil
}

// readRow tells what the rules in the kernel were made for, if they are
// complete and untouched.
func readRow(c *nl.Conn) (plan.Rules, bool, error) {
	comment, err := readAbout(c, inetTable)
	if err != nil {
		return plan.Rules{}, false, err
	}
	row, ok := parseAbout(comment)
	if !ok {
		return plan.Rules{}, false, nil
	}
	ok, err = intact(c, skeleton(row))
	return row, ok, err
}

// intact tells whether tables are, apart from elements, what they should be.
func intact(c *nl.Conn, tables []table) (bool, error) {
	for _, t := range tables {
		wanted, err := wantedLines(t)
		if err != nil {
			return false, err
		}
		actual, err := actualLines(c, t)
		if err != nil {
			return false, err
		}
		if !slices.Equal(wanted, actual) {
			return false, nil
		}
	}
	return true, nil
}

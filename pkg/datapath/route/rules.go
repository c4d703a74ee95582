package route

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

const (
	sizeofFibRule = 12 // struct fib_rule_hdr
	actionTable   = 1  // FR_ACT_TO_TBL
)

// Rules is the target for routing policy rules that carry our protocol number.
type Rules struct {
	socket
	foreign map[plan.RuleKey][]byte // as last listed: what it takes to delete them
}

// NewRules returns the target for the rules of a namespace.
func NewRules(space nl.Space) *Rules { return &Rules{socket: socket{space: space}} }

// List implements reconcile.Target.
func (t *Rules) List(context.Context) (map[plan.RuleKey]plan.Rule, error) {
	c, err := t.conn()
	if err != nil {
		return nil, err
	}
	rows := map[plan.RuleKey]plan.Rule{}
	foreign := map[plan.RuleKey][]byte{}
	for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
		found, err := dumpRules(c, family)
		if err != nil {
			return nil, t.broken(fmt.Errorf("list rules: %w", err))
		}
		for _, body := range found {
			row, ok := decodeRule(body)
			key := plan.RuleKey{Family: family}
			if _, taken := rows[key]; ok && !taken {
				rows[key] = row
				continue
			}
			key.Extra = len(foreign) + 1
			rows[key], foreign[key] = plan.Rule{}, body
		}
	}
	t.foreign = foreign
	return rows, nil
}

// dumpRules returns the body of every rule that carries our protocol number.
func dumpRules(c *nl.Conn, family plan.Family) ([][]byte, error) {
	header := make([]byte, sizeofFibRule)
	header[0] = ruleFamily(family)
	var out [][]byte
	err := c.Dump(nl.Request{Type: unix.RTM_GETRULE, Body: header}, func() { out = nil },
		func(_ uint16, body []byte) error {
			if len(body) < sizeofFibRule {
				return nil
			}
			for typ, v := range nl.Each(body[sizeofFibRule:]) {
				if typ == unix.FRA_PROTOCOL && len(v) == 1 && v[0] == plan.Proto {
					out = append(out, append([]byte(nil), body...))
				}
			}
			return nil
		})
	return out, err
}

// Apply implements reconcile.Target. A rule cannot be changed, so the new one
// is added beside the old one, which goes afterwards as a foreign one.
func (t *Rules) Apply(_ context.Context, set map[plan.RuleKey]plan.Rule, del []plan.RuleKey) map[plan.RuleKey]error {
	c, err := t.conn()
	if err != nil {
		return all(err, set, del)
	}
	failed := map[plan.RuleKey]error{}
	batch := batch[plan.RuleKey]{verb: "add rule"}
	for key, row := range set {
		batch.add(key, nl.Request{Type: unix.RTM_NEWRULE, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: encodeRule(key, row)})
	}
	batch.gone = []error{unix.EEXIST}
	batch.send(c, failed)
	batch.verb, batch.gone = "delete rule", []error{unix.ENOENT, unix.ESRCH}
	for _, key := range del {
		body := t.foreign[key]
		if key.Extra == 0 {
			body = encodeRule(key, plan.Rule{Priority: plan.RulePriority, Table: plan.Table})
		}
		batch.add(key, nl.Request{Type: unix.RTM_DELRULE, Body: body})
	}
	batch.send(c, failed)
	return failed
}

// Watch implements reconcile.Watcher.
func (t *Rules) Watch(ctx context.Context, wake func()) error {
	groups := []uint32{unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE}
	return t.space.Watch(ctx, unix.NETLINK_ROUTE, groups, func(e nl.Event) {
		if e.Sender != t.sender() {
			wake()
		}
	}, wake)
}

func encodeRule(key plan.RuleKey, row plan.Rule) []byte {
	h := make([]byte, sizeofFibRule)
	h[0], h[7] = ruleFamily(key.Family), actionTable
	attrs := nl.Attrs(h)
	attrs.U32(unix.FRA_PRIORITY, row.Priority)
	attrs.U32(unix.FRA_TABLE, row.Table)
	attrs.U8(unix.FRA_PROTOCOL, plan.Proto)
	return attrs
}

// decodeRule reads a rule. It is not ok unless it leads all packets to our
// table at our place.
func decodeRule(body []byte) (row plan.Rule, ok bool) {
	const none = 0xffffffff
	ok = body[1] == 0 && body[2] == 0 && body[3] == 0 && body[7] == actionTable &&
		binary.NativeEndian.Uint32(body[8:])&unix.FIB_RULE_INVERT == 0
	for typ, v := range nl.Each(body[sizeofFibRule:]) {
		switch typ {
		case unix.FRA_PRIORITY:
			row.Priority = nl.U32Of(v)
		case unix.FRA_TABLE:
			row.Table = nl.U32Of(v)
		case unix.FRA_PROTOCOL:
		case unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP:
			ok = ok && nl.U32Of(v) == none
		default:
			ok = false
		}
	}
	return row, ok && row == plan.Rule{Priority: plan.RulePriority, Table: plan.Table}
}

func ruleFamily(f plan.Family) byte {
	if f == plan.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

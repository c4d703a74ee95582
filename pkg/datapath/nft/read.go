package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// The kernel's view is read with plain dumps, for two reasons: a rule of
// somebody else that the nftables library cannot parse must not stop us, and
// 20,000 elements take a fraction of the time.

const sizeofNfGenMsg = 4

// tableID names a table.
type tableID struct {
	family nftables.TableFamily
	name   string
}

type chainInfo struct {
	name, kind             string
	base                   bool
	hook, priority, policy uint32
}

type ruleInfo struct{ chain, comment string }

type setInfo struct {
	name                         string
	flags, keyLength, dataLength uint32 // dataLength of maps only
}

// dump calls each with the attributes of every object of one kind in a table.
// A table that is not there has none.
func dump(c *nl.Conn, message uint16, at tableID, filter nl.Attrs, begin func(), each func(attrs []byte)) error {
	body := append(nl.Attrs{byte(at.family), unix.NFNETLINK_V0, 0, 0}, filter...)
	err := c.Dump(nl.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | message, Body: body}, begin,
		func(_ uint16, body []byte) error {
			if len(body) >= sizeofNfGenMsg && inTable(body, at.name) {
				each(body[sizeofNfGenMsg:])
			}
			return nil
		})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// inTable tells whether a message is of a table with a name, which is attribute
// 1 of every kind of object.
func inTable(body []byte, name string) bool {
	for typ, v := range nl.Each(body[sizeofNfGenMsg:]) {
		if typ == unix.NFTA_TABLE_NAME {
			return nl.StringOf(v) == name
		}
	}
	return false
}

func (t tableID) attrs() nl.Attrs {
	var a nl.Attrs
	a.Bytes(unix.NFTA_TABLE_NAME, []byte(t.name+"\x00"))
	return a
}

func readChains(c *nl.Conn, at tableID) ([]chainInfo, error) {
	var out []chainInfo
	err := dump(c, unix.NFT_MSG_GETCHAIN, at, at.attrs(), func() { out = nil }, func(attrs []byte) {
		var x chainInfo
		for typ, v := range nl.Each(attrs) {
			switch typ {
			case unix.NFTA_CHAIN_NAME:
				x.name = nl.StringOf(v)
			case unix.NFTA_CHAIN_TYPE:
				x.kind = nl.StringOf(v)
			case unix.NFTA_CHAIN_POLICY:
				x.policy = be32(v)
			case unix.NFTA_CHAIN_HOOK:
				x.base = true
				for typ, v := range nl.Each(v) {
					switch typ {
					case unix.NFTA_HOOK_HOOKNUM:
						x.hook = be32(v)
					case unix.NFTA_HOOK_PRIORITY:
						x.priority = be32(v)
					}
				}
			}
		}
		out = append(out, x)
	})
	if err != nil {
		return nil, fmt.Errorf("list nft chains: %w", err)
	}
	return out, nil
}

func readRules(c *nl.Conn, at tableID) ([]ruleInfo, error) {
	var out []ruleInfo
	err := dump(c, unix.NFT_MSG_GETRULE, at, at.attrs(), func() { out = nil }, func(attrs []byte) {
		var x ruleInfo
		for typ, v := range nl.Each(attrs) {
			switch typ {
			case unix.NFTA_RULE_CHAIN:
				x.chain = nl.StringOf(v)
			case unix.NFTA_RULE_USERDATA:
				x.comment = commentOf(v)
			}
		}
		out = append(out, x)
	})
	if err != nil {
		return nil, fmt.Errorf("list nft rules: %w", err)
	}
	return out, nil
}

// commentOf reads a comment as nft writes it: type, length, string. Others may
// have put anything there.
func commentOf(data []byte) string {
	if len(data) < 2 || data[0] != byte(userdata.TypeComment) || int(data[1]) > len(data)-2 {
		return ""
	}
	return nl.StringOf(data[2 : 2+int(data[1])])
}

func readSets(c *nl.Conn, at tableID) ([]setInfo, error) {
	var out []setInfo
	err := dump(c, unix.NFT_MSG_GETSET, at, at.attrs(), func() { out = nil }, func(attrs []byte) {
		var x setInfo
		for typ, v := range nl.Each(attrs) {
			switch typ {
			case unix.NFTA_SET_NAME:
				x.name = nl.StringOf(v)
			case unix.NFTA_SET_FLAGS:
				x.flags = be32(v)
			case unix.NFTA_SET_KEY_LEN:
				x.keyLength = be32(v)
			case unix.NFTA_SET_DATA_LEN:
				x.dataLength = be32(v)
			}
		}
		out = append(out, x)
	})
	if err != nil {
		return nil, fmt.Errorf("list nft sets: %w", err)
	}
	return out, nil
}

func readElements(c *nl.Conn, at tableID, set string) ([]element, error) {
	filter := at.attrs()
	filter.Bytes(unix.NFTA_SET_ELEM_LIST_SET, []byte(set+"\x00"))
	var out []element
	err := dump(c, unix.NFT_MSG_GETSETELEM, at, filter, func() { out = nil }, func(attrs []byte) {
		for typ, v := range nl.Each(attrs) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, e := range nl.Each(v) {
				out = append(out, elementOf(e))
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list nft set %s: %w", set, err)
	}
	return out, nil
}

func elementOf(attrs []byte) (e element) {
	value := func(nested []byte) []byte {
		for typ, v := range nl.Each(nested) {
			if typ == unix.NFTA_DATA_VALUE {
				return append([]byte(nil), v...)
			}
		}
		return nil
	}
	for typ, v := range nl.Each(attrs) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = value(v)
		case nftables.NFTA_SET_ELEM_KEY_END:
			e.keyEnd = value(v)
		case unix.NFTA_SET_ELEM_DATA:
			e.data = value(v)
			e.chain, e.verdict = verdictOf(v)
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = be32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
	}
	return e
}

// verdictOf reads the data of an element of a verdict map.
func verdictOf(data []byte) (chain string, code int32) {
	for typ, v := range nl.Each(data) {
		if typ != unix.NFTA_DATA_VERDICT {
			continue
		}
		for typ, v := range nl.Each(v) {
			switch typ {
			case unix.NFTA_VERDICT_CODE:
				code = int32(be32(v))
			case unix.NFTA_VERDICT_CHAIN:
				chain = nl.StringOf(v)
			}
		}
	}
	return chain, code
}

// Counter is how much a rule has counted since it was made.
type Counter struct{ Packets, Bytes uint64 }

func readCounters(c *nl.Conn, at tableID) (map[string]Counter, error) {
	var out map[string]Counter
	err := dump(c, unix.NFT_MSG_GETOBJ, at, at.attrs(), func() { out = map[string]Counter{} }, func(attrs []byte) {
		var name string
		var x Counter
		for typ, v := range nl.Each(attrs) {
			switch typ {
			case unix.NFTA_OBJ_NAME:
				name = nl.StringOf(v)
			case unix.NFTA_OBJ_DATA:
				for typ, v := range nl.Each(v) {
					switch {
					case len(v) != 8:
					case typ == unix.NFTA_COUNTER_PACKETS:
						x.Packets = binary.BigEndian.Uint64(v)
					case typ == unix.NFTA_COUNTER_BYTES:
						x.Bytes = binary.BigEndian.Uint64(v)
					}
				}
			}
		}
		out[name] = x
	})
	if err != nil {
		return nil, fmt.Errorf("list nft counters: %w", err)
	}
	return out, nil
}

package zone

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxName is the longest name in octets, with its last empty label (RFC 1035,
// section 3.1).
const maxName = 255

// ParseName reads a domain name, with or without its last dot, into the form
// that packets have, in lower case. It knows no escapes.
func ParseName(text string) ([]byte, error) {
	var out []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(text, "."), ".") {
		if label == "" || len(label) > 63 {
			return nil, fmt.Errorf("name %q: label %q has %d characters; use 1 to 63", text, label, len(label))
		}
		out = append(append(out, byte(len(label))), label...)
	}
	out = append(out, 0)
	if len(out) > maxName {
		return nil, fmt.Errorf("name %q: has %d octets; use at most %d", text, len(out), maxName)
	}
	lower(out)
	return out, nil
}

// Text writes a name of a packet as people do. Dots inside of labels, which no
// name of Kubernetes has, are not escaped.
func Text(wire []byte) string {
	var b strings.Builder
	for len(wire) > 0 && wire[0] > 0 && int(wire[0]) < len(wire) {
		b.Write(wire[1 : 1+wire[0]])
		b.WriteByte('.')
		wire = wire[1+wire[0]:]
	}
	if b.Len() == 0 {
		return "."
	}
	return b.String()
}

// lower turns a name, in place, into lower case. Length octets are at most 63,
// below all letters.
func lower(wire []byte) {
	for i, c := range wire {
		if c >= 'A' && c <= 'Z' {
			wire[i] = c + 'a' - 'A'
		}
	}
}

var errName = errors.New("malformed name")

// nameLen is the number of octets of the uncompressed name that b begins with.
func nameLen(b []byte) (int, error) {
	for i := 0; i < len(b) && i < maxName; {
		n := int(b[i])
		if n > 63 {
			return 0, errName
		}
		i += 1 + n
		if n == 0 {
			return i, nil
		}
	}
	return 0, errName
}

// skipName is the number of octets that the name takes which b begins with; it
// may end in a pointer, which is not followed.
func skipName(b []byte) (int, error) {
	for i := 0; i < len(b); {
		switch n := int(b[i]); {
		case n == 0:
			return i + 1, nil
		case n >= 0xc0:
			if i+2 > len(b) {
				return 0, errName
			}
			return i + 2, nil
		case n > 63:
			return 0, errName
		default:
			i += 1 + n
		}
	}
	return 0, errName
}

// hostLabel is the name of an endpoint: its host name, or its address with
// dashes. A label must not end in one, so a zero follows there.
func hostLabel(hostname string, addr netip.Addr) string {
	if hostname != "" {
		return strings.ToLower(hostname)
	}
	if addr.Is4() {
		return strings.ReplaceAll(addr.String(), ".", "-")
	}
	label := strings.ReplaceAll(addr.String(), ":", "-")
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}

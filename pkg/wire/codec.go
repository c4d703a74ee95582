package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// A value is one version byte, then the row as a protocol buffers message whose
// fields stand in ascending order. A field of an unknown number is skipped (a
// newer minor version may add some); an unknown version byte is refused. The
// zero value of a field is not written.

// Version is the version byte of all current encodings.
const Version byte = 1

// MaxValue is the size in bytes above which no value is decoded. etcd's own
// limit for a request is 1.5 MiB.
const MaxValue = 256 << 10

// ErrVersion says that a value is of a version this build can't read.
var ErrVersion = errors.New("unknown encoding version")

type encoder struct{ b []byte }

func newEncoder() *encoder { return &encoder{b: append(make([]byte, 0, 96), Version)} }

func (e *encoder) uint(n protowire.Number, v uint64) {
	if v != 0 {
		e.b = protowire.AppendVarint(protowire.AppendTag(e.b, n, protowire.VarintType), v)
	}
}

func (e *encoder) bool(n protowire.Number, v bool) {
	if v {
		e.uint(n, 1)
	}
}

func (e *encoder) bytes(n protowire.Number, v []byte) {
	if len(v) != 0 {
		e.element(n, v)
	}
}

func (e *encoder) string(n protowire.Number, v string) {
	if v != "" {
		e.b = protowire.AppendString(protowire.AppendTag(e.b, n, protowire.BytesType), v)
	}
}

// element writes one of a repeated field: an empty one counts.
func (e *encoder) element(n protowire.Number, v []byte) {
	e.b = protowire.AppendBytes(protowire.AppendTag(e.b, n, protowire.BytesType), v)
}

func (e *encoder) strings(n protowire.Number, list []string) {
	for _, s := range list {
		e.element(n, []byte(s))
	}
}

func (e *encoder) addr(n protowire.Number, a netip.Addr) {
	if a.IsValid() {
		e.bytes(n, a.AsSlice())
	}
}

func (e *encoder) prefix(n protowire.Number, p netip.Prefix) {
	if p.IsValid() {
		e.element(n, append(p.Addr().AsSlice(), byte(p.Bits())))
	}
}

// field is one field of a message: num holds a varint, raw anything else.
type field struct {
	n   protowire.Number
	typ protowire.Type
	num uint64
	raw []byte
}

// decode calls f for each field of a value. f returns an error to refuse it.
func decode(value []byte, f func(field) error) error {
	switch {
	case len(value) == 0:
		return errors.New("empty value")
	case len(value) > MaxValue:
		return fmt.Errorf("value of %d bytes is over %d", len(value), MaxValue)
	case value[0] != Version:
		return fmt.Errorf("%w %d", ErrVersion, value[0])
	}
	return fields(value[1:], f)
}

func fields(b []byte, f func(field) error) error {
	for last := protowire.Number(0); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("garbled field tag: %w", protowire.ParseError(n))
		}
		if num < last {
			return fmt.Errorf("field %d stands behind field %d", num, last)
		}
		last, b = num, b[n:]
		x := field{n: num, typ: typ}
		switch typ {
		case protowire.VarintType:
			x.num, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			x.raw, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("garbled field %d: %w", num, protowire.ParseError(n))
		}
		if err := f(x); err != nil {
			return fmt.Errorf("field %d: %w", num, err)
		}
		b = b[n:]
	}
	return nil
}

func (x field) uint(max uint64) (uint64, error) {
	if x.typ != protowire.VarintType {
		return 0, errors.New("not a number")
	}
	if x.num > max {
		return 0, fmt.Errorf("%d is over %d", x.num, max)
	}
	return x.num, nil
}

func (x field) bytes(max int) ([]byte, error) {
	if x.typ != protowire.BytesType {
		return nil, errors.New("not a string of bytes")
	}
	if len(x.raw) > max {
		return nil, fmt.Errorf("%d bytes are over %d", len(x.raw), max)
	}
	return x.raw, nil
}

// string takes printable UTF-8 only: these strings end up in terminals.
func (x field) string(max int) (string, error) {
	b, err := x.bytes(max)
	if err != nil {
		return "", err
	}
	return printable(b)
}

// printable refuses what a terminal obeys: control characters, C1's (U+009B is
// ESC [ in one) among them, and those that change the direction of writing.
func printable(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errors.New("not UTF-8")
	}
	s := string(b)
	for _, c := range s {
		if unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) {
			return "", fmt.Errorf("control character %#x", c)
		}
	}
	return s, nil
}

// Shown is a stranger's text for people: at most n bytes of it, and "·" for what
// can't be printed.
func Shown(text string, n int) string {
	if len(text) > n {
		text = text[:n] + "…"
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '·'
	}, text)
}

func (x field) addr() (netip.Addr, error) {
	b, err := x.bytes(16)
	if err != nil {
		return netip.Addr{}, err
	}
	return parseAddr(b)
}

func parseAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%d bytes are no address", len(b))
	}
	if a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%v is an IPv4 address written as IPv6", a)
	}
	return a, nil
}

func (x field) prefix() (netip.Prefix, error) {
	b, err := x.bytes(17)
	if err != nil {
		return netip.Prefix{}, err
	}
	if len(b) == 0 {
		return netip.Prefix{}, errors.New("empty prefix")
	}
	a, err := parseAddr(b[:len(b)-1])
	if err != nil {
		return netip.Prefix{}, err
	}
	p := netip.PrefixFrom(a, int(b[len(b)-1]))
	if !p.IsValid() || p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%v/%d is no network", a, b[len(b)-1])
	}
	return p, nil
}

package nl

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAttributes(t *testing.T) {
	var a Attrs
	a.U8(1, 7)
	a.U32(2, 7473)
	a.Addr(3, netip.MustParseAddr("192.0.2.1"))
	a.Addr(4, netip.Addr{})
	a.Nest(5, func(n *Attrs) { n.Bytes(6, []byte("cm-vxlan\x00")) })
	got := maps.Collect(Each(a))
	if len(got) != 4 || got[1][0] != 7 || U32Of(got[2]) != 7473 || AddrOf(got[3]) != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("read back %v", got)
	}
	if inner := maps.Collect(Each(got[5])); StringOf(inner[6]) != "cm-vxlan" {
		t.Errorf("nested: %v", inner)
	}
	for n := range len(a) { // a message that was cut off
		for _, v := range Each(a[:n]) {
			_ = v
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xea, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = split(b, func(m message) error {
			_ = m.failure()
			_, _, _ = LinkName(m.body)
			return nil
		})
	})
}

// TestBatchAnswersEach: one request in the middle of several packets fails, and
// only that one.
func TestBatchAnswersEach(t *testing.T) {
	c, err := Space{}.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lo, err := c.Index("lo")
	if err != nil {
		t.Fatal(err)
	}
	requests := make([]Request, 5000)
	for i := range requests {
		body := make([]byte, unix.SizeofIfInfomsg)
		body[4] = byte(lo)
		requests[i] = Request{Type: unix.RTM_GETLINK, Body: body}
	}
	bad := len(requests) / 2
	requests[bad].Body = []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0}
	for i, err := range c.Batch(requests) {
		if i == bad && !errors.Is(err, unix.ENODEV) || i != bad && err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	names, err := c.Names()
	if err != nil || names[lo] != "lo" {
		t.Errorf("devices %v, %v", names, err)
	}
}

package nl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// message is a netlink message from the kernel. Its body is valid until the
// next receive.
type message struct {
	typ, flags uint16
	seq, pid   uint32
	body       []byte
}

// receive reads one packet and calls each for every message in it.
func (c *Conn) receive(each func(message) error) error {
	n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(c.fd, c.buf, 0)
	}
	if err != nil {
		return fmt.Errorf("receive netlink: %w", err)
	}
	return split(c.buf[:n], each)
}

func split(b []byte, each func(message) error) error {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return fmt.Errorf("receive netlink: message of %d bytes in %d", n, len(b))
		}
		m := message{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			pid:   binary.NativeEndian.Uint32(b[12:]),
			body:  b[unix.SizeofNlMsghdr:n],
		}
		if err := each(m); err != nil {
			return err
		}
		b = b[min(len(b), (n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return nil
}

// failure is what an answer says: nil, or the error number with the kernel's
// explanation where it gave one.
func (m message) failure() error {
	if len(m.body) < 4 {
		return nil // NLMSG_DONE of older kernels
	}
	number := int32(binary.NativeEndian.Uint32(m.body))
	if number == 0 {
		return nil
	}
	errno := unix.Errno(-number)
	const capped = 4 + unix.SizeofNlMsghdr // NETLINK_CAP_ACK: the request's header only
	attrs := m.body[4:]
	if m.typ == unix.NLMSG_ERROR {
		attrs = m.body[min(len(m.body), capped):]
	}
	if m.flags&unix.NLM_F_ACK_TLVS != 0 {
		for typ, v := range Each(attrs) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				return fmt.Errorf("%w (%s)", errno, StringOf(v))
			}
		}
	}
	return errno
}

// Index returns the index of a device of the socket's namespace.
func (c *Conn) Index(name string) (uint32, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	if err := unix.IoctlIfreq(c.fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return r.Uint32(), nil
}

// Names returns the names of all devices by index. Statistics are left out.
func (c *Conn) Names() (map[uint32]string, error) {
	const skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	var attrs Attrs
	attrs.U32(unix.IFLA_EXT_MASK, skipStatistics)
	var out map[uint32]string
	err := c.Dump(Request{Type: unix.RTM_GETLINK, Body: append(make([]byte, unix.SizeofIfInfomsg), attrs...)},
		func() { out = map[uint32]string{} },
		func(_ uint16, body []byte) error {
			index, name, ok := LinkName(body)
			if ok {
				out[index] = name
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return out, nil
}

// LinkName reads index and name from the body of a link message.
func LinkName(body []byte) (index uint32, name string, ok bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return 0, "", false
	}
	for typ, v := range Each(body[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_IFNAME {
			return binary.NativeEndian.Uint32(body[4:]), StringOf(v), true
		}
	}
	return 0, "", false
}

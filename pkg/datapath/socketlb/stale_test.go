package socketlb

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
)

// TestCantEnd: what a kernel says that can't end sockets is told apart. No kernel
// can end sockets of AF_UNIX, and says so in the way in which one without
// CONFIG_INET_DIAG_DESTROY does of all.
func TestCantEnd(t *testing.T) {
	var space nl.Space
	c, err := space.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said := c.Batch([]nl.Request{{Type: sockDestroy, Body: append([]byte{unix.AF_UNIX, 0, 0, 0}, make([]byte, 20)...)}})
	if len(said) != 1 || cantEnd(said[0]) != ErrCantEnd {
		t.Errorf("the kernel says %v", said)
	}
	if err := cantEnd(unix.EPERM); !errors.Is(err, unix.EPERM) {
		t.Errorf("EPERM became %v", err)
	}
}

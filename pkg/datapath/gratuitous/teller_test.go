package gratuitous

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestTeller: a place is told three times and no more, also if that fails, and
// not after it is gone.
func TestTeller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := map[Place]int{}
		teller := newTeller(slog.New(slog.DiscardHandler), func(p Place) error { told[p]++; return errors.New("no link") })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = teller.Run(ctx) }()
		one, two := Place{"eth0", netip.MustParseAddr("192.0.2.1")}, Place{"eth0", netip.MustParseAddr("2001:db8::1")}
		teller.Tell(one)
		synctest.Wait()
		if told[one] != 1 {
			t.Errorf("told %d times at once", told[one])
		}
		teller.Tell(two)
		synctest.Wait()
		teller.Forget(two)
		time.Sleep(time.Minute)
		synctest.Wait()
		if told[one] != Times || told[two] != 1 {
			t.Errorf("told %v", told)
		}
		teller.Tell(one) // taken over once more
		time.Sleep(time.Minute)
		synctest.Wait()
		if told[one] != 2*Times {
			t.Errorf("told %v", told)
		}
		cancel()
		synctest.Wait()
	})
}

func TestMessages(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	arp := string(arpMessage(arpRequest, mac, netip.MustParseAddr("192.0.2.1")))
	if want := "\x00\x01\x08\x00\x06\x04\x00\x01" + "\x02\x00\x00\x00\x00\x07\xc0\x00\x02\x01" + "\x02\x00\x00\x00\x00\x07\xc0\x00\x02\x01"; arp != want {
		t.Errorf("ARP %x\nwant %x", arp, want)
	}
	na := string(advertisement(mac, netip.MustParseAddr("2001:db8::1")))
	if want := "\x88\x00\x00\x00\x20\x00\x00\x00" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x02\x01\x02\x00\x00\x00\x00\x07"; na != want {
		t.Errorf("advertisement %x\nwant %x", na, want)
	}
}

package datapath_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/datapath/nl"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/plan"
)

// stream sends numbered packets from one pod to another until stop is called,
// which returns how many were sent and how many of them arrived.
func stream(t testing.TB, from, to *testPod) (stop func() (sent, got int)) {
	t.Helper()
	inbox := listenUDP(t, to.space)
	var out net.Conn
	must(t, from.space.Do(func() (err error) {
		out, err = net.Dial("udp", netip.AddrPortFrom(to.row.IPs.V4, innerPort).String())
		return err
	}))
	end := make(chan struct{})
	sent, got := 0, 0
	var sender, receiver sync.WaitGroup
	receiver.Go(func() {
		for {
			if _, _, err := inbox.ReadFrom(make([]byte, 64)); err != nil {
				return
			}
			got++
		}
	})
	sender.Go(func() {
		defer out.Close()
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-end:
				return
			case <-tick.C:
				if _, err := out.Write([]byte("packet")); err == nil || errors.Is(err, unix.ECONNREFUSED) {
					sent++
				}
			}
		}
	})
	return func() (int, int) {
		close(end)
		sender.Wait()
		_ = inbox.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		receiver.Wait()
		return sent, got
	}
}

// TestUpgrade: rules of another version are replaced in one transaction, with
// the elements kept, and not a packet is lost meanwhile. Invariant: an upgrade
// of the agent is not seen by a packet.
func TestUpgrade(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"other rules", `
			flush chain inet clustermesh from_pod
			add rule inet clustermesh from_pod counter comment "of the version before"`},
		{"a chain at another place", `
			flush chain inet clustermesh forward
			delete chain inet clustermesh forward
			add chain inet clustermesh forward { type filter hook forward priority 5; policy accept; }`},
		{"a chain and a set that are no more", `
			add chain inet clustermesh old { type filter hook forward priority 7; policy accept; }
			add set inet clustermesh oldset { type ipv4_addr; elements = { 192.0.2.2 } }
			add rule inet clustermesh old ip saddr @oldset ip daddr { 10.9.9.9, 10.9.9.8 } drop`},
		{"a set of another shape", `
			flush chain inet clustermesh decap44
			add rule inet clustermesh decap44 accept
			delete set inet clustermesh decap44
			add set inet clustermesh decap44 { type ipv4_addr . ipv4_addr; flags interval; elements = { 192.0.2.2 . 10.2.0.0/16 } }`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, pods := twoNodes(t, model.EncapVXLAN, dualEast, dualWest)
			n := m.nodes[1]
			p := plan.Compute(m.input(t, n))
			file := t.TempDir() + "/old.nft"
			must(t, os.WriteFile(file, []byte(c.script), 0o600))
			run(t, n.space, "nft", "-f", file)
			old := newTargets(t, n.space).filter
			if same(t, "nft", old, p.Filter) {
				t.Fatal("the rules of the other version were taken for ours")
			}

			stop := stream(t, pods[0], pods[1])
			generations := countGenerations(t, n.space)
			time.Sleep(50 * time.Millisecond)
			fresh := newTargets(t, n.space)
			converge(t, "nft", fresh.filter, p.Filter)
			time.Sleep(50 * time.Millisecond)
			if sent, got := stop(); sent != got || sent == 0 {
				t.Errorf("%d packets sent, %d arrived", sent, got)
			}
			if g := generations(); g != 1 {
				t.Errorf("%d transactions, want 1", g)
			}
			if got := run(t, n.space, "nft", "list", "ruleset"); strings.Contains(got, "old") {
				t.Errorf("something old is left:\n%s", got)
			}
		})
	}
}

// TestRowsMoveWithoutLoss: a node's row that changes under traffic, and one that
// goes from one backend to the other, cost no packet, in whatever order the
// targets get to it.
func TestRowsMoveWithoutLoss(t *testing.T) {
	m, pods := twoNodes(t, model.EncapAuto, dualEast, dualWest)
	stop := stream(t, pods[0], pods[1])
	for range 5 {
		for _, backend := range []model.Encap{model.EncapVXLAN, model.EncapAuto} {
			// Receivers are ready for either before a sender changes.
			m.nodes[0].row.Encap, m.nodes[1].row.Encap = backend, backend
			for _, n := range m.nodes {
				n.applyShuffled(t, plan.Compute(m.input(t, n)))
			}
		}
		// Another node with another prefix length: the rules change too.
		m.nodes = append(m.nodes, &testNode{targets: m.nodes[0].targets, space: m.nodes[0].space})
		extra := m.nodes[2]
		extra.row = model.Node{Key: model.NodeKey{Cluster: "west", Name: "w2"}, Internal: model.Addrs{V4: netip.MustParseAddr("192.0.2.3")},
			PodCIDRs: model.Prefixes{V4: netip.MustParsePrefix("10.2.6.0/26")}}
		for _, n := range m.nodes[:2] {
			n.apply(t, plan.Compute(m.input(t, n)))
		}
		m.nodes = m.nodes[:2]
		m.program(t)
	}
	if sent, got := stop(); sent != got || sent == 0 {
		t.Errorf("%d packets sent, %d arrived", sent, got)
	}
}

// countGenerations counts transactions of nftables.
func countGenerations(t testing.TB, s nl.Space) func() int {
	t.Helper()
	x := &events{}
	ctx := t.Context()
	ready := make(chan struct{})
	var done sync.WaitGroup
	t.Cleanup(done.Wait)
	done.Go(func() {
		_ = s.Watch(ctx, unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, func(e nl.Event) {
			if e.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				x.mu.Lock()
				x.list = append(x.list, "generation")
				x.mu.Unlock()
			}
		}, sync.OnceFunc(func() { close(ready) }))
	})
	<-ready
	return func() int { return len(x.take()) }
}

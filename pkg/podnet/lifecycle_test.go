package podnet

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// TestCrash kills the agent (-9) at every point of ADD. The next agent finds
// either the whole attachment, or nothing of it.
func TestCrash(t *testing.T) {
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			n := newNode(t)
			n.stop()
			child := crashAt(t, n, step)
			p := newPod(t, "crash")
			n.fails("ADD", p, api.CodeTryAgain, "does not answer")
			child.Wait() //nolint:errcheck // it was killed
			n.start()
			if step == "answer" || step == "end" { // it was complete
				n.holds(p)
			} else {
				n.holds()
				n.ok("ADD", p)
			}
			n.holds(p)
			n.ok("DEL", p)
			n.holds()
		})
	}
}

// crashAt starts an agent process that dies at a step, and waits until it serves.
func crashAt(t *testing.T, n *node, step string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childStep+"="+step, "JOURNAL="+n.journal, "SOCKET="+n.socket)
	ns, err := dupNS(int(n.ns))
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(ns), "netns")
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() //nolint:errcheck // it was killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "serving\n" {
		t.Fatalf("agent process: %q, %v", line, err)
	}
	return cmd
}

// TestRestart: a new agent takes over and the kernel sees nothing of it.
func TestRestart(t *testing.T) {
	n := newNode(t)
	addNodeAddress(t, n)
	pods := []pod{newPod(t, "a"), newPod(t, "b")}
	spaces := []netns.NsHandle{n.ns}
	for _, p := range pods {
		n.ok("ADD", p)
		spaces = append(spaces, p.ns)
	}
	before := n.pods.Rows()
	var watches []*nl.NetlinkSocket
	for _, ns := range spaces {
		watches = append(watches, watch(t, ns))
	}
	n.restart()
	if err := n.agent.collect(t.Context()); err != nil {
		t.Error(err)
	}
	for i, ns := range spaces {
		if got := changes(t, ns, watches[i]); len(got) != 0 {
			t.Errorf("namespace %d: the restart made %v", i, got)
		}
	}
	n.holds(pods...)
	if diff := cmp.Diff(before, n.pods.Rows(), cmpopts.EquateComparable(model.Pod{})); diff != "" {
		t.Error(diff)
	}
	for _, p := range pods {
		for _, ip := range before[p.key()].IPs.All() {
			if err := echo(p, n, ip); err != nil {
				t.Errorf("node to pod %s: %v", ip, err)
			}
		}
	}
	c := newPod(t, "c") // gets an address that nobody has
	n.ok("ADD", c)
	n.holds(append(pods, c)...)
}

func watch(t *testing.T, ns netns.NsHandle) *nl.NetlinkSocket {
	t.Helper()
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// changes makes a link of its own and returns the types of all messages that
// came before it. RTM_NEWLINK is not among them: the kernel repeats it when it
// gets round to the operational state.
func changes(t *testing.T, ns netns.NsHandle, s *nl.NetlinkSocket) (found []uint16) {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "marker"
	err = errors.Join(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "marker-peer"}), s.SetReceiveTimeout(&unix.Timeval{Sec: 5}))
	if err != nil {
		t.Fatal(err)
	}
	for {
		messages, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_NEWLINK {
				found = append(found, m.Header.Type)
				continue
			}
			link, err := netlink.LinkDeserialize((*unix.NlMsghdr)(&m.Header), m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if link.Attrs().Name == "marker" {
				return found
			}
		}
	}
}

// TestReboot: the journal survives, the kernel does not.
func TestReboot(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"a", "b"} {
		n.ok("ADD", newPod(t, id))
	}
	n.stop()
	n.ns = newNS(t)
	n.start()
	n.holds()
	c := newPod(t, "c")
	n.ok("ADD", c)
	n.holds(c)
	if row, _ := n.pods.Get(c.key()); row.IPs.V4.String() != "10.77.1.4" {
		t.Errorf("address %s was used just before", row.IPs.V4)
	}
}

// TestCollect: a runtime that forgets DEL leaks nothing for ever.
func TestCollect(t *testing.T) {
	n := newNode(t)
	dead, live := newPod(t, "dead"), newPod(t, "live")
	n.ok("ADD", dead)
	n.ok("ADD", live)
	h, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := deleteVeth(h, HostIf(dead.key())); err != nil {
		t.Fatal(err)
	}
	collect := func() {
		if err := n.agent.collect(t.Context()); err != nil {
			t.Error(err)
		}
	}
	collect()
	if n.used() != 2 {
		t.Error("freed before the time of grace")
	}
	n.set(func() { n.now = time.Now().Add(61 * time.Second) })
	collect()
	n.holds(live)
}

// TestOrphans: veths that nobody knows go, what is not ours stays.
func TestOrphans(t *testing.T) {
	n := newNode(t)
	live := newPod(t, "live")
	n.ok("ADD", live)
	h, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	keep := []string{"cm-vxlan", "cm00112233445", "cmother", "cm0011223344", "eth7"}
	err = errors.Join(
		h.LinkAdd(&netlink.Veth{LinkAttrs: attrs("cm0123456789a"), PeerName: "peer0"}),
		h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("cm-vxlan")}),
		h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("cm00112233445")}), // named like ours, but no veth
		h.LinkAdd(&netlink.Veth{LinkAttrs: attrs("cmother"), PeerName: "peer1"}),
		h.LinkAdd(&netlink.Veth{LinkAttrs: attrs("cm0011223344"), PeerName: "peer2"}),
		h.LinkAdd(&netlink.Veth{LinkAttrs: attrs("eth7"), PeerName: "peer3"}),
	)
	if err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.holds(live)
	got := strings.Join(links(t, n.ns), " ")
	for _, name := range keep {
		if !strings.Contains(got, name) {
			t.Errorf("%s is gone: %s", name, got)
		}
	}
	if strings.Contains(got, "cm0123456789a") {
		t.Errorf("the orphan stays: %s", got)
	}
}

func TestGCVerb(t *testing.T) {
	n := newNode(t)
	keep, drop, other := newPod(t, "keep"), newPod(t, "drop"), newPod(t, "other")
	n.ok("ADD", keep)
	n.ok("ADD", drop)
	if a := n.plugin("ADD", strings.Replace(config, `"clustermesh",`, `"second",`, 1), other); a.exit != 0 {
		t.Fatalf("%+v", a)
	}
	n.fails("GC", pod{}, api.CodeConfig, "no cni.dev/valid-attachments")
	n.holds(keep, drop, other)
	gc := strings.TrimSuffix(config, "}") + `,"cni.dev/valid-attachments":[{"containerID":"keep","ifname":"eth0"},{"containerID":"drop","ifname":"eth1"}]}`
	if a := n.plugin("GC", gc, pod{}); a.exit != 0 {
		t.Fatalf("%+v", a)
	}
	n.holds(keep, other)
	empty := strings.TrimSuffix(config, "}") + `,"cni.dev/valid-attachments":[]}`
	if a := n.plugin("GC", empty, pod{}); a.exit != 0 {
		t.Fatalf("%+v", a)
	}
	n.holds(other)
}

// TestPodCIDRChange: a node that was created again has other pod CIDRs.
func TestPodCIDRChange(t *testing.T) {
	n := newNode(t)
	old := newPod(t, "old")
	n.ok("ADD", old)
	n.agent.SetPodCIDRs(prefixes("10.78.0.0/24"))
	young := newPod(t, "young")
	n.ok("ADD", young)
	for p, want := range map[pod]string{old: "10.77.1.2", young: "10.78.0.2"} {
		if row, _ := n.pods.Get(p.key()); row.IPs.V4.String() != want {
			t.Errorf("%s has %s, want %s", p.id, row.IPs.V4, want)
		}
	}
	outside := func() (found []string) {
		for _, l := range n.board.Lines() {
			if l.Key == (status.Key{Component: "ipam", Object: "old pod CIDR"}) {
				found = append(found, l.Message)
			}
		}
		return found
	}
	if got := outside(); len(got) != 1 || got[0] != "1 pods have addresses outside of this node's pod CIDRs" {
		t.Errorf("board: %v", got)
	}
	n.ok("DEL", old)
	if got := outside(); len(got) != 0 {
		t.Errorf("board: %v", got)
	}
}

// TestTornJournal: garbage is moved aside and shown; the agent starts.
func TestTornJournal(t *testing.T) {
	n := newNode(t)
	good, torn := newPod(t, "good"), newPod(t, "torn")
	n.ok("ADD", good)
	n.ok("ADD", torn)
	file := filepath.Join(n.journal, HostIf(torn.key())+".json")
	if err := os.WriteFile(file, []byte(`{"version":`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	key := status.Key{Component: "journal", Object: file + ".rejected"}
	found := false
	for _, l := range n.board.Lines() {
		found = found || l.Key == key && l.Level == status.Degraded && l.Remedy != ""
	}
	if !found {
		t.Errorf("not on the board: %v", n.board.Lines())
	}
	if err := os.Remove(file + ".rejected"); err != nil {
		t.Error(err)
	}
	n.holds(good)
}

// TestOneAgent: the next agent waits until the one before has gone.
func TestOneAgent(t *testing.T) {
	n := newNode(t)
	second, err := New(n.options())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := second.Restore(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if err := second.ready(); !errors.Is(err, errStarting) {
		t.Errorf("ready: %v", err)
	}
}

// TestDrain: an ADD that is under way when the agent is told to stop is answered.
func TestDrain(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a")
	reached, release := make(chan struct{}), make(chan struct{})
	n.set(func() {
		n.fail = func(s string) error {
			if s == "sync" {
				close(reached)
				<-release
			}
			return nil
		}
	})
	got := make(chan answer)
	go func() { got <- n.plugin("ADD", config, p) }()
	<-reached
	stopped := make(chan struct{})
	go func() { n.stop(); close(stopped) }()
	close(release)
	if a := <-got; a.exit != 0 {
		t.Errorf("%+v", a)
	}
	<-stopped
	n.failAt()
	n.start()
	n.holds(p)
}

// TestRuntimeGivesUp: when the plugin is killed, the ADD it asked for is undone.
func TestRuntimeGivesUp(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a")
	stalled := make(chan struct{})
	n.set(func() { n.stalled = stalled })
	cmd := exec.Command(pluginPath)
	cmd.Stdin = strings.NewReader(config)
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_IFNAME=eth0", "CNI_NETNS=" + nsPath(p.ns), "CLUSTERMESH_CNI_SOCKET=" + n.socket}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-stalled
	cmd.Process.Kill()
	cmd.Wait()     //nolint:errcheck // it was killed
	n.ok("DEL", p) // waits for the ADD
	n.holds()
	n.set(func() {
		for _, o := range n.seen {
			if o.Verb == "ADD" && o.Err == nil {
				t.Error("an ADD succeeded that nobody waited for")
			}
		}
	})
}

func TestCleanup(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"a", "b"} {
		n.ok("ADD", newPod(t, id))
	}
	n.stop()
	err := inNS(n.ns, func() error { return Cleanup(t.Context(), n.journal, n.agent.opt.Log) })
	if err != nil {
		t.Fatal(err)
	}
	if got := n.veths(); len(got) != 0 {
		t.Errorf("veths stay: %v", got)
	}
	if _, err := os.Stat(n.journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("journal stays: %v", err)
	}
}

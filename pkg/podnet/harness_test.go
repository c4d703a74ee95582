package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

var pluginPath string // built once by TestMain, read only

func TestMain(m *testing.M) {
	if os.Getenv(childStep) != "" {
		crashingAgent()
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("FAIL: the tests of podnet make network namespaces and need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "podnet-test-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	pluginPath = filepath.Join(dir, "clustermesh-cni")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", pluginPath, "../../cmd/clustermesh-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("build plugin: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// newNS returns a network namespace that lives as long as the test.
func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		old, err := netns.Get()
		if err == nil {
			defer old.Close()
			if ns, err = netns.New(); err == nil && netns.Set(old) == nil {
				runtime.UnlockOSThread()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// nsPath is a path to ns that other processes can open.
func nsPath(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns)) }

// node is a node in namespaces of its own, with an agent that can be restarted.
type node struct {
	t       testing.TB
	ns      netns.NsHandle
	dir     string
	journal string
	socket  string
	cidrs   model.Prefixes

	// Of the running agent.
	agent *Server
	pods  *state.Table[model.PodKey, model.Pod]
	board *status.Board
	stop  func()

	mu      sync.Mutex
	now     time.Time               // guarded by mu; zero: the real time
	syncErr error                   // guarded by mu
	stalled chan struct{}           // guarded by mu; sync closes it, then waits until the caller has gone
	notOK   error                   // guarded by mu
	seen    []Outcome               // guarded by mu
	fail    func(step string) error // guarded by mu; may be nil
}

func prefixes(list ...string) (p model.Prefixes) {
	for _, s := range list {
		p = p.Add(netip.MustParsePrefix(s))
	}
	return p
}

func newNode(t testing.TB) *node {
	dir := t.TempDir()
	n := &node{t: t, ns: newNS(t), dir: dir, journal: filepath.Join(dir, "pods"), socket: filepath.Join(dir, "agent.sock"),
		cidrs: prefixes("10.77.1.0/24", "fd00:77:1::/64"), stop: func() {}}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) options() Options {
	n.pods = state.New[model.PodKey, model.Pod]()
	n.board = status.NewBoard(time.Now)
	level := slog.LevelError
	if os.Getenv(childStep) == "" && testing.Verbose() {
		level = slog.LevelInfo
	}
	return Options{
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		Board: n.board, Pods: n.pods, Sync: n.sync, Ready: n.ready,
		MTU:     func() MTU { return MTU{Device: 1500, Route: 1450} },
		Journal: n.journal, HostNS: n.ns, Now: n.clock, Observe: n.observe,
	}
}

func (n *node) clock() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now.IsZero() {
		return time.Now()
	}
	return n.now
}

func (n *node) observe(o Outcome) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, o)
}

func (n *node) ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.notOK
}

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) failpoint(step string) error {
	n.mu.Lock()
	fail := n.fail
	n.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(step)
}

// failAt makes the agent fail at these steps; none mends it.
func (n *node) failAt(steps ...string) {
	n.set(func() {
		n.fail = func(s string) error {
			if slices.Contains(steps, s) {
				return errors.New("injected at " + s)
			}
			return nil
		}
	})
}

// used is the number of addresses in use.
func (n *node) used() int {
	n.agent.mu.Lock()
	defer n.agent.mu.Unlock()
	return int(n.agent.alloc.Usage()[0].Used)
}

// sync programs what the datapath's loops would: a route and a neighbour per
// address. It only adds; the kernel removes them with the veth.
func (n *node) sync(ctx context.Context, _ model.Pod) error {
	n.mu.Lock()
	err, stalled := n.syncErr, n.stalled
	n.mu.Unlock()
	if stalled != nil {
		close(stalled)
		<-ctx.Done()
		ctx = context.WithoutCancel(ctx) // the node is programmed all the same
	}
	if err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	h, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, p := range n.pods.Rows() {
		if err := program(h, p); err != nil && !isGone(err) {
			return err
		}
	}
	return nil
}

func program(h *netlink.Handle, p model.Pod) error {
	link, err := h.LinkByName(p.HostIf)
	if err != nil {
		return err
	}
	for _, ip := range p.IPs.All() {
		i := link.Attrs().Index
		err := errors.Join(
			h.NeighSet(&netlink.Neigh{LinkIndex: i, State: unix.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: p.MAC[:]}),
			h.RouteReplace(&netlink.Route{LinkIndex: i, Dst: hostNet(ip), Scope: netlink.SCOPE_LINK, Table: table}))
		if err != nil {
			return err
		}
	}
	return nil
}

// start runs an agent the way its main does.
func (n *node) start() {
	n.t.Helper()
	s, err := New(n.options())
	if err != nil {
		n.t.Fatal(err)
	}
	if err := s.Restore(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	s.failpoint = n.failpoint
	s.SetPodCIDRs(n.cidrs)
	l, err := Listen(n.socket)
	if err != nil {
		n.t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.Register(mux)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux, slog.New(slog.DiscardHandler)) }()
	n.agent = s
	n.stop = func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			n.t.Error(err)
		}
		n.stop = func() {}
	}
}

func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.start()
}

// pod is a sandbox.
type pod struct {
	id string
	ns netns.NsHandle
}

func (p pod) key() model.PodKey { return model.PodKey{ContainerID: p.id, IfName: "eth0"} }

func newPod(t testing.TB, id string) pod { return pod{id: id, ns: newNS(t)} }

// answer is what the plugin printed.
type answer struct {
	exit   int
	stdout string
	stderr string
	err    api.Error
}

// table is the routing table of the agent, which a rule points to.
const table = 7473

const config = `{"cniVersion":"1.1.0","name":"clustermesh","type":"clustermesh-cni"}`

// plugin starts the plugin as a runtime does.
func (n *node) plugin(verb, conf string, p pod, env ...string) answer {
	n.t.Helper()
	cmd := exec.Command(pluginPath)
	cmd.Stdin = strings.NewReader(conf)
	cmd.Env = append([]string{"CNI_COMMAND=" + verb, "CLUSTERMESH_CNI_SOCKET=" + n.socket, "CNI_PATH=/opt/cni/bin"}, env...)
	if p.id != "" {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+p.id, "CNI_IFNAME=eth0",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod-"+p.id)
	}
	if p.ns > 0 {
		cmd.Env = append(cmd.Env, "CNI_NETNS="+nsPath(p.ns))
	}
	// Later values win, so that a test can override any of the above.
	cmd.Env = append(cmd.Env, env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatal(err)
	}
	a := answer{exit: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: stderr.String()}
	if a.exit != 0 {
		if err := json.Unmarshal(out.Bytes(), &a.err); err != nil {
			n.t.Fatalf("%s: exit %d, no error object: %q %q", verb, a.exit, a.stdout, a.stderr)
		}
	}
	return a
}

// ok calls the plugin and expects success.
func (n *node) ok(verb string, p pod) answer {
	n.t.Helper()
	a := n.plugin(verb, config, p)
	if a.exit != 0 {
		n.t.Fatalf("%s %s: %+v", verb, p.id, a.err)
	}
	return a
}

// fails calls the plugin and expects an error with that code and text.
func (n *node) fails(verb string, p pod, code uint, text string) {
	n.t.Helper()
	a := n.plugin(verb, config, p)
	if a.exit != 1 || a.err.Code != code || !strings.Contains(a.err.Msg, text) {
		n.t.Fatalf("%s %s: exit %d, %+v; want code %d and %q", verb, p.id, a.exit, a.err, code, text)
	}
}

func (n *node) veths() map[string]bool {
	n.t.Helper()
	h, err := netlink.NewHandleAt(n.ns, unix.NETLINK_ROUTE)
	if err != nil {
		n.t.Fatal(err)
	}
	defer h.Close()
	list, err := listVeths(h)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// holds checks that exactly the given pods are in the kernel, the journal, the
// allocator and the table.
func (n *node) holds(pods ...pod) {
	n.t.Helper()
	want := map[string]bool{}
	for _, p := range pods {
		want[HostIf(p.key())] = true
	}
	veths := n.veths()
	files, err := os.ReadDir(n.journal)
	if err != nil {
		n.t.Fatal(err)
	}
	journal := map[string]bool{}
	for _, f := range files {
		journal[strings.TrimSuffix(f.Name(), ".json")] = true
	}
	rows := map[string]bool{}
	for _, r := range n.pods.Rows() {
		rows[r.HostIf] = true
	}
	for what, got := range map[string]map[string]bool{"veths": veths, "journal": journal, "rows": rows} {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			n.t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	n.agent.mu.Lock()
	defer n.agent.mu.Unlock()
	if got := len(n.agent.entries); got != len(pods) {
		n.t.Errorf("%d entries, want %d", got, len(pods))
	}
	for _, u := range n.agent.alloc.Usage() {
		if int(u.Used) != len(pods) {
			n.t.Errorf("%d addresses of %s in use, want %d", u.Used, u.Prefix, len(pods))
		}
	}
}

// links returns the names of the links in a namespace.
func links(t testing.TB, ns netns.NsHandle) (names []string) {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	list, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

const childStep = "PODNET_TEST_CRASH_STEP"

// crashingAgent is an agent in a process of its own that dies by SIGKILL at a
// step of ADD. Descriptor 3 is the node's namespace.
func crashingAgent() {
	n := &node{t: &testing.T{}, ns: netns.NsHandle(3), journal: os.Getenv("JOURNAL"), cidrs: prefixes("10.77.1.0/24", "fd00:77:1::/64")}
	s, err := New(n.options())
	if err == nil {
		err = s.Restore(context.Background())
	}
	if err != nil {
		panic(err)
	}
	s.SetPodCIDRs(n.cidrs)
	s.failpoint = func(step string) error {
		if step == os.Getenv(childStep) {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	l, err := Listen(os.Getenv("SOCKET"))
	if err != nil {
		panic(err)
	}
	fmt.Println("serving")
	mux := http.NewServeMux()
	s.Register(mux)
	panic(Serve(context.Background(), l, mux, slog.New(slog.DiscardHandler)))
}

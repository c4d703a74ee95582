package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// flowResult is what labtool flow prints.
type flowResult struct {
	Protocol       string
	Sent, Received int
	Lost           int
	Retransmits    int
	MaxGapMs       float64
	Broken         string
	SendErrors     int
}

// flows are long-lived flows between pods; each pair has one TCP connection and
// one UDP exchange, and takes turns in which of them is of which family. They run
// until check closes their standard input.
type flows struct {
	wait    sync.WaitGroup
	inputs  []io.Closer
	first   chan struct{} // one for each that has begun
	mu      sync.Mutex
	results map[string]flowResult // guarded by mu
	errs    []error               // guarded by mu
}

func startFlows(t *testing.T, m *fixture.Mesh, pairs [][2]fixture.Pod) *flows {
	t.Helper()
	f := newFlows(t)
	for i, p := range pairs {
		for j, mode := range []string{"--udp=false", "--udp=true"} {
			ips := p[1].IPs.All()
			f.start(t, m, p[0], ips[(i+j)%len(ips)].String(), p[1].String(), mode)
		}
	}
	f.started(t)
	return f
}

// newFlows is none yet; they end with the test.
func newFlows(t *testing.T) *flows {
	f := &flows{results: map[string]flowResult{}, first: make(chan struct{}, 100)}
	t.Cleanup(f.end)
	return f
}

// start starts one more, from a pod to HOST[:PORT], which the reader knows by
// name.
func (f *flows) start(t *testing.T, m *fixture.Mesh, from fixture.Pod, to, name, mode string) {
	t.Helper()
	cmd, err := m.Stream(t.Context(), from, "/bin/labtool", "flow", "--to", to, "--interval", "10ms", "--duration", "10m", "--stdin", mode)
	must(t, err)
	in, err := cmd.StdinPipe()
	must(t, err)
	f.inputs = append(f.inputs, in)
	f.wait.Go(func() { f.run(cmd, fmt.Sprintf("%s to %s %s", from, name, mode)) })
}

// started waits until all run.
func (f *flows) started(t *testing.T) {
	t.Helper()
	for range f.inputs {
		select {
		case <-f.first:
		case <-time.After(30 * time.Second):
			f.end()
			t.Fatalf("flows did not start: %v", f.errs)
		}
	}
}

func (f *flows) end() {
	for _, in := range f.inputs {
		_ = in.Close()
	}
	f.wait.Wait()
}

func (f *flows) run(cmd *exec.Cmd, name string) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &firstLine{started: f.first}
	err := cmd.Run()
	var r flowResult
	if jerr := json.Unmarshal(out.Bytes(), &r); jerr != nil && err == nil {
		err = jerr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.results[name] = r
	if err != nil {
		f.errs = append(f.errs, fmt.Errorf("%s: %w, said %q", name, err, out.String()))
	}
}

// firstLine reports the first write.
type firstLine struct {
	once    sync.Once
	started chan<- struct{}
}

func (l *firstLine) Write(b []byte) (int, error) {
	l.once.Do(func() { l.started <- struct{}{} })
	return len(b), nil
}

// check ends the flows: no message lost, none sent twice, nothing reset.
func (f *flows) check(t *testing.T) {
	t.Helper()
	f.end()
	for _, err := range f.errs {
		t.Error(err)
	}
	for name, r := range f.results {
		if r.Lost > 0 || r.Broken != "" || r.SendErrors > 0 || r.Sent < 50 {
			t.Errorf("%s: %+v; want every one of at least 50 messages answered", name, r)
		}
		t.Logf("%s: %d messages, longest gap %.0f ms, %d retransmits", name, r.Sent, r.MaxGapMs, r.Retransmits)
	}
}

// routeWatch collects what the kernels of nodes say of changes to routes.
type routeWatch struct {
	nodes []*lab.Node
	seen  []*monitor
}

// monitor is the output of `ip monitor`.
type monitor struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (m *monitor) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.Write(b)
}

func (m *monitor) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.String()
}

func watchRoutes(t *testing.T, nodes ...*lab.Node) *routeWatch {
	t.Helper()
	w := &routeWatch{nodes: nodes}
	for _, n := range nodes {
		ctx, cancel := context.WithCancel(t.Context())
		m := &monitor{}
		cmd := exec.CommandContext(ctx, "ip", "-n", n.Netns(), "monitor", "route")
		cmd.Stdout = m
		must(t, cmd.Start())
		t.Cleanup(func() { cancel(); _ = cmd.Wait() }) // killed, which is its error
		w.seen = append(w.seen, m)
		w.mark(t, n, m, "192.0.2.1")
	}
	return w
}

// mark changes a route until the monitor tells: it watches, and has told all that
// was before.
func (w *routeWatch) mark(t *testing.T, n *lab.Node, m *monitor, addr string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		sh(t, n, "ip route add unreachable "+addr+" table 7474; ip route del unreachable "+addr+" table 7474")
		if !strings.Contains(m.String(), "eleted unreachable "+addr) {
			return fmt.Errorf("the watch of routes on %s tells nothing", n.Name)
		}
		return nil
	})
}

// podDevice is one whose routes come and go with a pod.
var podDevice = regexp.MustCompile(` dev cm[0-9a-f]{11}\b`)

// check ends the watch: no route to another node's pods was touched.
func (w *routeWatch) check(t *testing.T) {
	t.Helper()
	for i, n := range w.nodes {
		w.mark(t, n, w.seen[i], "192.0.2.2")
		for line := range strings.Lines(w.seen[i].String()) {
			if strings.Contains(line, "table 7473") && !podDevice.MatchString(line) {
				t.Errorf("%s: route changed: %s", n.Name, strings.TrimSpace(line))
			}
		}
	}
}

// killAndWait kills a process on a node with SIGKILL, waits until another one
// runs, and then until ready says yes.
func killAndWait(t *testing.T, n *lab.Node, process string, ready func() error) {
	t.Helper()
	must(t, n.Kill(t.Context(), process))
	eventually(t, 90*time.Second, func() error {
		if len(n.PIDs(process)) == 0 {
			return fmt.Errorf("%s of %s has not come back", process, n.Name)
		}
		return ready()
	})
}

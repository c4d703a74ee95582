package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// TestVersions: every version of the specification gets its own shape of result.
func TestVersions(t *testing.T) {
	n := newNode(t)
	for _, v := range api.Versions() {
		t.Run(v, func(t *testing.T) {
			p := newPod(t, "v"+v)
			conf := strings.Replace(config, "1.1.0", v, 1)
			a := n.plugin("ADD", conf, p)
			if a.exit != 0 {
				t.Fatalf("%+v", a)
			}
			result, err := version.NewResult(v, []byte(a.stdout))
			if err != nil || result.Version() != v {
				t.Fatalf("result %v, %v: %s", result, err, a.stdout)
			}
			var ips struct {
				IPs []struct{ Version string }
			}
			if err := json.Unmarshal([]byte(a.stdout), &ips); err != nil || len(ips.IPs) != 2 {
				t.Fatalf("%v: %s", err, a.stdout)
			}
			if old := strings.HasPrefix(v, "0."); (ips.IPs[0].Version == "4") != old {
				t.Errorf("ips of version %s: %+v", v, ips)
			}
			check := strings.TrimSuffix(conf, "}") + `,"prevResult":` + a.stdout + "}"
			if c := n.plugin("CHECK", check, p); (c.exit == 0) != (v != "0.3.1") {
				t.Errorf("CHECK: %+v", c)
			}
			if s := n.plugin("STATUS", conf, pod{}); (s.exit == 0) != (v == "1.1.0") {
				t.Errorf("STATUS: %+v", s)
			}
			if d := n.plugin("DEL", check, p); d.exit != 0 {
				t.Errorf("DEL: %+v", d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a")
	plain := filepath.Join(n.dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(s string) string { return strings.TrimSuffix(config, "}") + "," + s + "}" }
	for name, c := range map[string]struct {
		verb, conf string
		env        []string
		code       uint
		text       string
	}{
		"garbage config":    {"ADD", "{", nil, api.CodeDecode, "decode network configuration"},
		"empty config":      {"ADD", "", nil, api.CodeDecode, "decode network configuration"},
		"no version":        {"ADD", `{"name":"x"}`, nil, api.CodeIncompatible, `cniVersion "0.1.0" is not supported`},
		"future version":    {"ADD", `{"name":"x","cniVersion":"2.0.0"}`, nil, api.CodeIncompatible, `cniVersion "2.0.0"`},
		"no name":           {"ADD", `{"cniVersion":"1.0.0"}`, nil, api.CodeConfig, "missing network name"},
		"not first":         {"ADD", with(`"prevResult":{"cniVersion":"1.1.0"}`), nil, api.CodeConfig, "prevResult"},
		"foreign ipam":      {"ADD", with(`"ipam":{"type":"host-local"}`), nil, api.CodeConfig, `ipam.type is "host-local"`},
		"no container":      {"ADD", config, []string{"CNI_CONTAINERID="}, 3, "missing containerID"},
		"bad container":     {"ADD", config, []string{"CNI_CONTAINERID=../x"}, api.CodeEnvironment, "invalid characters"},
		"no interface":      {"ADD", config, []string{"CNI_IFNAME="}, api.CodeEnvironment, "interface name is empty"},
		"long interface":    {"ADD", config, []string{"CNI_IFNAME=a234567890123456"}, api.CodeEnvironment, "too long"},
		"interface exists":  {"ADD", config, []string{"CNI_IFNAME=lo"}, api.CodeEnvironment, "has an interface lo already"},
		"no netns":          {"ADD", config, []string{"CNI_NETNS="}, api.CodeNetNS, "CNI_NETNS is empty"},
		"netns is gone":     {"ADD", config, []string{"CNI_NETNS=/var/run/netns/gone"}, api.CodeNetNS, "no such file"},
		"netns is a file":   {"ADD", config, []string{"CNI_NETNS=" + plain}, api.CodeNetNS, "not a network namespace"},
		"netns is a uts ns": {"ADD", config, []string{"CNI_NETNS=/proc/self/ns/uts"}, api.CodeNetNS, "not a network namespace"},
		"netns of the node": {"ADD", config, []string{"CNI_NETNS=" + nsPath(n.ns)}, api.CodeNetNS, "is the node's own"},
		"no verb":           {"", config, nil, api.CodeEnvironment, "CNI_COMMAND is not set"},
		"unknown verb":      {"FROB", config, nil, api.CodeEnvironment, `CNI_COMMAND "FROB" is unknown`},
		"DEL: bad config":   {"DEL", "{", nil, api.CodeDecode, "decode network configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			a := n.plugin(c.verb, c.conf, p, c.env...)
			if a.exit != 1 || a.err.Code != c.code || !strings.Contains(a.err.Msg, c.text) {
				t.Errorf("exit %d, %+v; want code %d and %q", a.exit, a.err, c.code, c.text)
			}
			if !slices.Contains(api.Versions(), a.err.CNIVersion) {
				t.Errorf("cniVersion %q", a.err.CNIVersion)
			}
			n.holds()
		})
	}
}

// TestNetnsPaths: both forms of path that runtimes use.
func TestNetnsPaths(t *testing.T) {
	n := newNode(t)
	ns := newNS(t)
	name := fmt.Sprintf("cmtest-%d", os.Getpid())
	bound := "/run/netns/" + name
	if err := errors.Join(os.MkdirAll("/run/netns", 0o755), os.WriteFile(bound, nil, 0o444)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(bound) })
	if err := unix.Mount(nsPath(ns), bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(bound, unix.MNT_DETACH) })
	sleeper := exec.Command("sleep", "60")
	err := inNS(ns, func() error { return sleeper.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sleeper.Process.Kill(); sleeper.Wait() }) //nolint:errcheck // it was killed
	for _, path := range []string{bound, "/var/run/netns/" + name, fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid)} {
		t.Run(path, func(t *testing.T) {
			p := pod{id: "a", ns: ns}
			if a := n.plugin("ADD", config, p, "CNI_NETNS="+path); a.exit != 0 {
				t.Fatalf("%+v", a)
			}
			n.holds(p)
			if got := links(t, ns); len(got) != 2 {
				t.Errorf("links in the pod: %v", got)
			}
			// The runtime may ask with a path that is gone, or none.
			for _, gone := range []string{"/var/run/netns/gone", ""} {
				if a := n.plugin("DEL", config, p, "CNI_NETNS="+gone); a.exit != 0 {
					t.Fatalf("%+v", a)
				}
			}
			n.holds()
		})
		t.Run("by path alone "+path, func(t *testing.T) {
			got, err := openNS(nil, path)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if !got.Equal(ns) {
				t.Error("opened another namespace")
			}
		})
	}
}

func TestNetnsCandidates(t *testing.T) {
	for path, want := range map[string][]string{
		"/var/run/netns/cni-1": {"/var/run/netns/cni-1", "/run/netns/cni-1"},
		"/run/netns/cni-1":     {"/run/netns/cni-1"},
		"/proc/1/ns/net":       {"/proc/1/ns/net"},
	} {
		if got := candidates(path); !slices.Equal(got, want) {
			t.Errorf("candidates(%s) = %v, want %v", path, got, want)
		}
	}
}

// TestIPv6Disabled: some runtimes switch IPv6 off in every new namespace.
func TestIPv6Disabled(t *testing.T) {
	n := newNode(t)
	p := newPod(t, "a")
	if err := setSysctls(p.ns, []sysctl{{"ipv6/conf/all/disable_ipv6", "1"}, {"ipv6/conf/default/disable_ipv6", "1"}}); err != nil {
		t.Fatal(err)
	}
	n.checks(p, n.ok("ADD", p).stdout)
}

// TestSingleStack: a family without pod CIDR is left alone.
func TestSingleStack(t *testing.T) {
	for _, cidr := range []string{"10.77.1.0/24", "fd00:77:1::/64"} {
		t.Run(cidr, func(t *testing.T) {
			n := newNode(t)
			n.agent.SetPodCIDRs(prefixes(cidr))
			p := newPod(t, "a")
			result := n.ok("ADD", p).stdout
			if strings.Count(result, `"address"`) != 1 {
				t.Error(result)
			}
			n.checks(p, result)
		})
	}
}

// TestOnlyRoot: the mode of the socket and the check of the peer agree.
func TestOnlyRoot(t *testing.T) {
	n := newNode(t)
	info, err := os.Stat(n.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	// Open the way as far as the file system is concerned.
	for dir := n.socket; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(n.dir, "plugin")
	if err := (Install{Binary: pluginPath, BinDir: n.dir}).Plugin(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(n.dir, api.PluginType), copied); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied)
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(config)
	cmd.Env = []string{"CNI_COMMAND=STATUS", "CLUSTERMESH_CNI_SOCKET=" + n.socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.Output()
	if err == nil || !strings.Contains(string(out), `"code":50`) {
		t.Errorf("as nobody: %v, %s", err, out)
	}
	n.ok("STATUS", pod{})
}

// TestBrokenClients: what is no HTTP or stops half-way does not hurt.
func TestBrokenClients(t *testing.T) {
	n := newNode(t)
	for _, message := range []string{"", "\x00\x01", "GET / HTTP/1.1\r\n\r\n", "POST /v1/cni HTTP/1.0\r\nContent-Length: 100\r\n\r\nhalf",
		"POST /v1/cni HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]"} {
		c, err := net.Dial("unix", n.socket)
		if err != nil {
			t.Fatal(err)
		}
		// Three descriptors where one is expected: all of them are closed.
		rights := unix.UnixRights(0, 1, 2)
		if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(message), rights, nil); err != nil && message != "" {
			t.Error(err)
		}
		c.(*net.UnixConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(time.Second))
		c.Read(make([]byte, 100))
		c.Close()
	}
	p := newPod(t, "a")
	n.ok("ADD", p)
	n.holds(p)
}

// TestAddTime prints what a runtime waits for.
func TestAddTime(t *testing.T) {
	n := newNode(t)
	var add, del []time.Duration
	for i := range 40 {
		p := newPod(t, fmt.Sprintf("time%d", i))
		add = append(add, timed(func() { n.ok("ADD", p) }))
		del = append(del, timed(func() { n.ok("DEL", p) }))
	}
	slices.Sort(add)
	slices.Sort(del)
	t.Logf("at the plugin, %d times: ADD p50 %v max %v, DEL p50 %v max %v", len(add), add[len(add)/2], add[len(add)-1], del[len(del)/2], del[len(del)-1])
}

func timed(f func()) time.Duration {
	started := time.Now()
	f()
	return time.Since(started).Round(10 * time.Microsecond)
}

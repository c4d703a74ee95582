package etcdserver_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver"
	"github.com/clustermesh/clustermesh/clustermesh-apiserver/etcdserver/etcdtest"
)

func start(t *testing.T, dir string) (*etcdserver.Server, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	s := etcdtest.Must(etcdserver.Start(t.Context(), etcdserver.Options{Dir: dir, Log: slog.New(slog.NewTextHandler(log, nil))}))(t)
	t.Cleanup(func() { _ = s.Close() })
	return s, log
}

func put(t *testing.T, c *clientv3.Client, key string) {
	t.Helper()
	if _, err := c.Put(t.Context(), key, "v"); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, c *clientv3.Client, key string) bool {
	t.Helper()
	return len(etcdtest.Must(c.Get(t.Context(), key))(t).Kvs) == 1
}

// TestReopen damages what a store left behind, and looks whether the next one
// keeps the rows or starts afresh, as the store's state warrants.
func TestReopen(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, store string)
		keep   bool
		log    string
	}{
		{"closed", func(*testing.T, string) {}, true, ""},
		{"machine rebooted after close", func(*testing.T, string) {}, true, ""},
		{"machine went down", func(t *testing.T, d string) { overwrite(t, filepath.Join(d, "boot"), "another boot") }, false, "machine went down"},
		{"died while opening", func(t *testing.T, d string) { overwrite(t, filepath.Join(d, "opening"), "") }, false, "did not come back"},
		{"long away", func(t *testing.T, d string) {
			old := time.Now().Add(-2 * time.Hour)
			if err := os.Chtimes(filepath.Join(d, "etcd/member/snap/db"), old, old); err != nil {
				t.Fatal(err)
			}
		}, false, "last written at"},
		{"unknown origin", func(t *testing.T, d string) { remove(t, filepath.Join(d, "boot")) }, false, "does not say"},
		{"garbage in the database", func(t *testing.T, d string) {
			overwrite(t, filepath.Join(d, "etcd/member/snap/db"), strings.Repeat("garbage", 10000))
		}, false, "does not open"},
		{"database cut short", func(t *testing.T, d string) {
			if err := os.Truncate(filepath.Join(d, "etcd/member/snap/db"), 100); err != nil {
				t.Fatal(err)
			}
		}, false, "does not open"},
		{"garbage in the log", func(t *testing.T, d string) {
			for _, f := range etcdtest.Must(filepath.Glob(filepath.Join(d, "etcd/member/wal/*.wal")))(t) {
				overwrite(t, f, strings.Repeat("garbage", 10000))
			}
		}, false, "does not open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			a, _ := start(t, dir)
			put(t, a.Client(), "/k")
			id := a.ClusterID()
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, filepath.Join(dir, "store"))
			b, log := start(t, dir)
			if got := has(t, b.Client(), "/k"); got != tt.keep || (b.ClusterID() == id) != tt.keep {
				t.Errorf("row kept %v, id %x → %x, want kept %v", got, id, b.ClusterID(), tt.keep)
			}
			if !strings.Contains(log.String(), tt.log) || tt.log == "" && log.Len() > 0 {
				t.Errorf("log %q, want %q", log, tt.log)
			}
			put(t, b.Client(), "/new")
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			c, _ := start(t, dir)
			if !has(t, c.Client(), "/new") {
				t.Error("a row written after the repair is gone")
			}
		})
	}
}

func overwrite(t *testing.T, path, s string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestInUse leaves a store alone that another server has open.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	a, _ := start(t, dir)
	put(t, a.Client(), "/k")
	if b, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: dir}); err == nil {
		_ = b.Close()
		t.Error("a second server has opened the store")
	}
	put(t, a.Client(), "/l")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if b, _ := start(t, dir); !has(t, b.Client(), "/k") || !has(t, b.Client(), "/l") {
		t.Error("rows are gone")
	}
}

const killEnv = "CLUSTERMESH_KILL_DIR"

// TestKilled kills a process that writes, with SIGKILL: every row that it was
// told is written is there afterwards.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killEnv); dir != "" {
		s, _ := start(t, dir)
		for i := range 500 {
			put(t, s.Client(), fmt.Sprintf("/k%03d", i))
		}
		fmt.Println("\n@@ written")
		<-t.Context().Done() // killed here
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), killEnv+"="+dir)
	out := &watchFor{want: "@@ written", seen: make(chan struct{})}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-out.seen:
	case <-time.After(30 * time.Second):
		t.Error("nothing was written in 30 s")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	began := time.Now()
	s, log := start(t, dir)
	resp := etcdtest.Must(s.Client().Get(t.Context(), "/k", clientv3.WithPrefix(), clientv3.WithCountOnly()))(t)
	if resp.Count != 500 {
		t.Errorf("%d of 500 rows are left; log %s", resp.Count, log)
	}
	t.Logf("opened in %v", time.Since(began))
}

// watchFor closes seen once want was written to it.
type watchFor struct {
	want string
	got  string
	seen chan struct{}
}

func (w *watchFor) Write(p []byte) (int, error) {
	before := strings.Contains(w.got, w.want)
	w.got += string(p)
	if !before && strings.Contains(w.got, w.want) {
		close(w.seen)
	}
	return len(p), nil
}

// TestNoListener makes sure that etcd has opened no port.
func TestNoListener(t *testing.T) {
	before := listeners(t)
	s, _ := start(t, t.TempDir())
	put(t, s.Client(), "/k")
	if after := listeners(t); after != before {
		t.Errorf("listening sockets before: %s, after: %s", before, after)
	}
}

// listeners is the list of this process's listening TCP sockets.
func listeners(t *testing.T) string {
	t.Helper()
	mine := map[string]bool{}
	for _, fd := range etcdtest.Must(os.ReadDir("/proc/self/fd"))(t) {
		if l, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(l, "socket:[") {
			mine[strings.TrimSuffix(strings.TrimPrefix(l, "socket:["), "]")] = true
		}
	}
	var out []string
	for _, f := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // no such family here
		}
		for line := range strings.Lines(string(b)) {
			if c := strings.Fields(line); len(c) > 9 && c[3] == "0A" && mine[c[9]] {
				out = append(out, c[1])
			}
		}
	}
	return strings.Join(out, " ")
}

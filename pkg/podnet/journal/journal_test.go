package journal

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/clustermesh/clustermesh/pkg/model"
)

func entry(id string, minute int) Entry {
	return Entry{
		Pod: model.Pod{
			Key: model.PodKey{ContainerID: id, IfName: "eth0"}, Namespace: "ns", Name: "pod-" + id,
			IPs:    model.Addrs{V4: netip.MustParseAddr("10.0.0.2"), V6: netip.MustParseAddr("fd00::2")},
			HostIf: "cm" + id, MAC: model.MAC{2, 0, 0, 0, 0, 1},
		},
		Network: "clustermesh", Ready: true,
		Created: time.Date(2026, 1, 2, 3, minute, 5, 6, time.UTC),
	}
}

func open(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

var compare = cmpopts.EquateComparable(netip.Addr{})

func load(t *testing.T, j *Journal, want ...Entry) []Problem {
	t.Helper()
	got, problems, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
	return problems
}

func TestPutLoadDelete(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	j := open(t, dir)
	old, young := entry("b", 1), entry("a", 2)
	for _, e := range []Entry{young, old} {
		if err := j.Put(e); err != nil {
			t.Fatal(err)
		}
	}
	load(t, j, old, young)
	old.Ready = false
	if err := j.Put(old); err != nil {
		t.Fatal(err)
	}
	load(t, j, old, young)
	for range 2 {
		if err := j.Delete(old.Pod.HostIf); err != nil {
			t.Fatal(err)
		}
	}
	load(t, j, young)
}

// TestTornFiles: whatever a power failure or an operator leaves, the good
// entries load and the rest is moved aside once.
func TestTornFiles(t *testing.T) {
	good, _ := os.ReadFile(written(t, entry("good", 1)))
	for name, content := range map[string]string{
		"empty":        "",
		"zeros":        "\x00\x00\x00\x00",
		"truncated":    string(good[:len(good)/2]),
		"other type":   "[]",
		"other name":   strings.Replace(string(good), "cmgood", "cmother", 1),
		"no address":   strings.Replace(string(good), `"10.0.0.2","fd00::2"`, ``, 1),
		"two of v4":    strings.Replace(string(good), `fd00::2`, `10.0.0.3`, 1),
		"bad address":  strings.Replace(string(good), `fd00::2`, `fd00::x`, 1),
		"bad mac":      strings.Replace(string(good), `02:00:00:00:00:01`, `02`, 1),
		"no container": strings.Replace(string(good), `"containerID":"good"`, `"containerID":""`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			fine := entry("fine", 1)
			if err := j.Put(fine); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "cmgood.json"), content)
			write(t, filepath.Join(dir, "cmhalf.json.tmp"), "half")
			problems := load(t, j, fine)
			if len(problems) != 1 || problems[0].File != filepath.Join(dir, "cmgood.json.rejected") || problems[0].Err == nil {
				t.Errorf("problems: %v", problems)
			}
			if again := load(t, j, fine); len(again) != 0 {
				t.Errorf("reported again: %v", again)
			}
			if _, err := os.Stat(filepath.Join(dir, "cmhalf.json.tmp")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("leftover stays: %v", err)
			}
		})
	}
}

// TestNewerVersion: entries that a newer agent wrote are left alone, and nothing
// is loaded: their pods would be taken for unknown.
func TestNewerVersion(t *testing.T) {
	good, _ := os.ReadFile(written(t, entry("good", 1)))
	path := filepath.Join(t.TempDir(), "cmgood.json")
	write(t, path, strings.Replace(string(good), `"version":1`, `"version":2`, 1))
	var newer *VersionError
	if _, _, err := open(t, filepath.Dir(path)).Load(); !errors.As(err, &newer) {
		t.Errorf("Load: %v, want a VersionError", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func written(t *testing.T, e Entry) string {
	dir := t.TempDir()
	if err := open(t, dir).Put(e); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, e.Pod.HostIf+".json")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLock: the journal has one owner; the next one waits for it.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, dir); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "another agent") {
		t.Fatalf("error %v", err)
	}
	got := make(chan error, 1)
	go func() {
		j, err := Open(t.Context(), dir)
		if err == nil {
			err = j.Close()
		}
		got <- err
	}()
	first.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"containerID":"a","ifName":"eth0","ips":["10.0.0.2"],"hostIf":"cma","mac":"02:00:00:00:00:01"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decode(data)
		if err == nil && (e.Pod.HostIf == "" || len(e.Pod.IPs.All()) == 0) {
			t.Errorf("took %q as %+v", data, e)
		}
	})
}

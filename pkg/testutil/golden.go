// Package testutil is what tests of several packages share.
package testutil

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Golden compares got with the file of that name under testdata, or rewrites
// the file if the test runs with -update.
func Golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read golden file (make one with -update): %v", err)
	}
	if string(got) != string(want) {
		t.Errorf("differs from %s (rewrite it with -update):\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}

// Eventually polls until ok, for things that have no event to wait for: the
// kernel, etcd, Kubernetes. what names the thing in the failure.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		ok     bool
		body   string
		err    string
	}{
		"success":         {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", true, "{}", ""},
		"CNI error":       {"HTTP/1.0 500 Internal Server Error\r\ncontent-length:2\r\n\r\n{}", false, "{}", ""},
		"empty body":      {"HTTP/1.0 200 OK\r\n\r\n", true, "", ""},
		"nothing":         {"", false, "", "cut short"},
		"half a head":     {"HTTP/1.0 200 OK\r\nContent-", false, "", "cut short"},
		"half a body":     {"HTTP/1.0 200 OK\r\nContent-Length: 20\r\n\r\n{}", false, "", "cut short"},
		"length no digit": {"HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\n{}", false, "", "cut short"},
		"other status":    {"HTTP/1.0 404 Not Found\r\n\r\n", false, "", "404 Not Found"},
		"no HTTP":         {"hello\r\n\r\n", false, "", "is not HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			ok, body, err := parse([]byte(c.answer))
			if ok != c.ok || c.err == "" && string(body) != c.body {
				t.Errorf("ok %v, body %q", ok, body)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if ok, _, err := parse(answer); ok && err != nil {
			t.Error("success with an error")
		}
	})
}

// TestTimeout: an agent that takes the call and never answers.
func TestTimeout(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, _, err = call(socket, api.Request{Command: "ADD"}, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "timed out") {
		t.Errorf("error %v", err)
	}
}

// TestStatusGrace: while an agent is restarted the node stays ready, and no longer.
func TestStatusGrace(t *testing.T) {
	dir := t.TempDir()
	status := func() int {
		env := map[string]string{"CNI_COMMAND": "STATUS", socketVariable: filepath.Join(dir, "none")}
		return run(func(k string) string { return env[k] }, strings.NewReader(`{"cniVersion":"1.1.0"}`), io.Discard, io.Discard)
	}
	served := filepath.Join(dir, api.ServedFile)
	if got := status(); got != 1 {
		t.Errorf("never served: exit %d, want 1", got)
	}
	for age, want := range map[time.Duration]int{0: 0, api.ServedGrace - time.Second: 0, api.ServedGrace + time.Second: 1, -time.Hour: 1} {
		if err := os.WriteFile(served, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(served, at, at); err != nil {
			t.Fatal(err)
		}
		if got := status(); got != want {
			t.Errorf("served %v ago: exit %d, want %d", age, got, want)
		}
	}
}

// TestUnreachable: what each verb answers without an agent.
func TestUnreachable(t *testing.T) {
	for verb, want := range map[string]struct {
		exit int
		code uint
	}{
		"ADD": {1, api.CodeTryAgain}, "CHECK": {1, api.CodeTryAgain}, "GC": {1, api.CodeTryAgain},
		"STATUS": {1, api.CodeUnavailable}, "DEL": {0, 0}, "VERSION": {0, 0}, "": {1, api.CodeEnvironment},
	} {
		t.Run(verb, func(t *testing.T) {
			env := map[string]string{"CNI_COMMAND": verb, socketVariable: filepath.Join(t.TempDir(), "none")}
			var out, stderr bytes.Buffer
			exit := run(func(k string) string { return env[k] }, strings.NewReader(`{"cniVersion":"1.0.0"}`), &out, &stderr)
			var got api.Error
			if exit == 1 {
				if err := json.Unmarshal(out.Bytes(), &got); err != nil {
					t.Fatalf("%v: %q", err, out.String())
				}
			}
			if exit != want.exit || got.Code != want.code {
				t.Errorf("exit %d, %+v, want %+v", exit, got, want)
			}
			if verb == "DEL" && (out.Len() != 0 || !strings.Contains(stderr.String(), "free the address later")) {
				t.Errorf("stdout %q, stderr %q", out.String(), stderr.String())
			}
		})
	}
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u}]
contexts:
- {name: east, context: {cluster: c, user: u}}
- {name: west@admin, context: {cluster: c, user: u}}
current-context: east
`

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every error of the command line names the flag, the value and what to do, and comes before anything is changed.
func TestArgumentErrors(t *testing.T) {
	config := writeFile(t, "kubeconfig", kubeconfig)
	broken := writeFile(t, "broken", "{")
	tests := map[string]struct {
		args string
		want []string
	}{
		"unknown verb":       {"instal", []string{`unknown command "instal"`, "install"}},
		"unknown flag":       {"install --fast", []string{"--fast"}},
		"surplus argument":   {"install east", []string{`"east"`}},
		"no kubeconfig":      {"install --kubeconfig /nowhere", []string{"/nowhere", "--kubeconfig"}},
		"broken kubeconfig":  {"install --kubeconfig " + broken, []string{broken, "--kubeconfig"}},
		"unknown context":    {"install --context north --kubeconfig " + config, []string{`--context "north"`, "east, west@admin"}},
		"unreachable":        {"install --timeout 5s --kubeconfig " + config, []string{"http://127.0.0.1:1", `"east"`, "check the server"}},
		"bad set":            {"install --set cluster --kubeconfig " + config, []string{"--set", "cluster"}},
		"missing value file": {"install -f /nowhere.yaml --kubeconfig " + config, []string{"-f", "/nowhere.yaml"}},
		"bad image":          {"install --image UPPER:x:y --kubeconfig " + config, []string{`--image "UPPER:x:y"`, "repository:tag"}},
		"image without tag":  {"install --image ghcr.io/a/b --kubeconfig " + config, []string{"repository:tag"}},
		"zero timeout":       {"install --timeout 0s", []string{"--timeout 0s", "5m"}},
		"output format":      {"install --dry-run -o json", []string{`--output "json"`, "yaml"}},
		"output alone":       {"install -o yaml", []string{"--dry-run"}},
		"upgrade":            {"upgrade --timeout 5s --kubeconfig " + config, []string{"http://127.0.0.1:1"}},
		"uninstall":          {"uninstall --timeout 5s --kubeconfig " + config, []string{"http://127.0.0.1:1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			args := append([]string{"clustermesh"}, strings.Fields(tt.args)...)
			err := run(t.Context(), args, strings.NewReader(""), &out, &errOut)
			if err == nil {
				t.Fatalf("no error; printed %s%s", &out, &errOut)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not mention %q", err, want)
				}
			}
		})
	}
}

func TestNoKubeconfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent")
	t.Setenv("KUBECONFIG", path)
	err := run(t.Context(), []string{"clustermesh", "install"}, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("error %v does not say where it looked and what to do", err)
	}
}

func TestHelp(t *testing.T) {
	for program, want := range map[string]string{
		"/usr/bin/clustermesh":         "  clustermesh [command]",
		"/usr/bin/kubectl-clustermesh": "  kubectl clustermesh [command]",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{program, "--help"}, strings.NewReader(""), &out, &out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("help of %s lacks %q:\n%s", program, want, &out)
		}
	}
}

package main

import (
	"bytes"
	"strings"
	"testing"
)

// Every error of the command line names the flag, the value and what to do, and comes before anything is changed.
func TestLinkArgumentErrors(t *testing.T) {
	config := writeFile(t, "kubeconfig", kubeconfig)
	pair := "connect --kubeconfig " + config + " --context east --destination-context west@admin"
	tests := map[string]struct {
		args string
		want []string
	}{
		"connect to nobody":           {"connect", []string{"--destination-context", "the other cluster"}},
		"surplus argument":            {"connect east", []string{`"east"`}},
		"unknown destination":         {"connect --destination-context north --kubeconfig " + config, []string{`--destination-context "north"`, "east, west@admin"}},
		"unknown source":              {"connect --context north --destination-context east --kubeconfig " + config, []string{`--context "north"`, "east, west@admin"}},
		"destination twice":           {pair + " --destination-context west@admin", []string{`"west@admin"`, "given twice"}},
		"no destination kubeconfig":   {pair + " --destination-kubeconfig /nowhere", []string{"/nowhere"}},
		"endpoint without port":       {pair + " --source-endpoint 192.0.2.1", []string{`--source-endpoint "192.0.2.1"`, "HOST:PORT", "[2001:db8::10]:7473"}},
		"endpoint with bad port":      {pair + " --destination-endpoint mesh:99999", []string{`--destination-endpoint "mesh:99999"`}},
		"endpoint with port 0":        {pair + " --destination-endpoint mesh:0", []string{`--destination-endpoint "mesh:0"`}},
		"endpoint is a URL":           {pair + " --destination-endpoint https://mesh:7473", []string{"HOST:PORT"}},
		"endpoint IPv6 bare":          {pair + " --destination-endpoint fd00::1:7473", []string{"HOST:PORT"}},
		"endpoint for several":        {pair + " --destination-context east --destination-endpoint mesh:7473", []string{"--destination-endpoint", "one by one"}},
		"yes without refresh":         {pair + " --yes", []string{"--yes", "--refresh"}},
		"output without dry-run":      {pair + " -o yaml", []string{"--dry-run"}},
		"output format":               {pair + " --dry-run -o json", []string{`--output "json"`, "yaml"}},
		"connect zero timeout":        {pair + " --timeout 0s", []string{"--timeout 0s", "3m"}},
		"connect unreachable":         {pair, []string{"2 problems, nothing was changed", "context east: reach Kubernetes at http://127.0.0.1:1", "context west@admin: reach"}},
		"disconnect nobody":           {"disconnect", []string{"PEER", "--destination-context", "clustermesh peers"}},
		"disconnect two":              {"disconnect a b", []string{"accepts at most 1 arg"}},
		"disconnect unknown":          {"disconnect --destination-context north --kubeconfig " + config, []string{`--destination-context "north"`, "east, west@admin"}},
		"disconnect zero timeout":     {"disconnect east --timeout 0s", []string{"--timeout 0s"}},
		"status of unknown context":   {"status --context east --context north --kubeconfig " + config, []string{`--context "north"`, "east, west@admin"}},
		"status format":               {"status -o yaml", []string{`--output "yaml"`, "json"}},
		"status zero timeout":         {"status --timeout -1s", []string{"--timeout -1s"}},
		"status unreachable":          {"status --kubeconfig " + config, []string{"not everything is well"}},
		"peers unreachable":           {"peers --kubeconfig " + config, []string{"context east: list peers"}},
		"troubleshoot nobody":         {"troubleshoot", []string{"takes one peer"}},
		"troubleshoot unreachable":    {"troubleshoot west --kubeconfig " + config, []string{"context east: list peers"}},
		"troubleshoot without a time": {"troubleshoot west --timeout 0s", []string{"--timeout 0s"}},
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

func TestEndpointsThatServe(t *testing.T) {
	for _, endpoint := range []string{"192.0.2.1:7473", "[2001:db8::1]:1", "mesh.example.com:65535", "localhost:7473"} {
		if err := checkEndpoint("--source-endpoint", endpoint); err != nil {
			t.Error(err)
		}
	}
}

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	for args, want := range map[string]string{
		"service explain":         "clustermesh service explain takes one service, not 0: NAMESPACE/NAME, for example default/web",
		"service explain a b":     "clustermesh service explain takes one service, not 2: NAMESPACE/NAME, for example default/web",
		"troubleshoot":            "clustermesh troubleshoot takes one peer, not 0: the name of a connected cluster; `clustermesh peers` lists them",
		"connect west east":       "clustermesh connect west east: name clusters by the contexts of the kubeconfig: clustermesh connect --context west --destination-context east",
		"connect west":            `clustermesh connect takes no arguments, not ["west"]: use --context and --destination-context`,
		"services -A --only shop": "if any flags in the group [only all-namespaces] are set none of the others can be; [all-namespaces only] were all set",
	} {
		root := rootCommand("clustermesh")
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(strings.Fields(args))
		if err := root.Execute(); err == nil || err.Error() != want {
			t.Errorf("clustermesh %s: %v\nwant %s", args, err, want)
		}
	}
}

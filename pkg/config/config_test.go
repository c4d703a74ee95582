package config

import (
	"strings"
	"testing"
)

// TestRefused: an error names field, value and remedy.
func TestRefused(t *testing.T) {
	good := "cluster: {name: west, podCIDRs: [10.1.0.0/16]}\nkubernetes: {host: 192.0.2.1}\n"
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	with := func(podCIDRs string) string { return strings.Replace(good, "[10.1.0.0/16]", podCIDRs, 1) }
	for name, c := range map[string]struct {
		yaml string
		want []string
	}{
		"empty range":       {with(`[""]`), []string{"cluster.podCIDRs", `""`, "use a network"}},
		"null range":        {with(`[null]`), []string{"cluster.podCIDRs", "use a network"}},
		"everything":        {with("[0.0.0.0/0]"), []string{"cluster.podCIDRs", "0.0.0.0/0"}},
		"loopback":          {with("[127.0.0.0/8]"), []string{"cluster.podCIDRs", "127.0.0.0/8", "loopback"}},
		"link-local":        {with("[169.254.0.0/17]"), []string{"cluster.podCIDRs", "169.254.0.0/17"}},
		"IPv6 link-local":   {with("['fe80::/16']"), []string{"cluster.podCIDRs", "fe80::/16"}},
		"multicast":         {with("['ff00::/16']"), []string{"cluster.podCIDRs", "ff00::/16"}},
		"half of all":       {with("[0.0.0.0/1]"), []string{"cluster.podCIDRs", "0.0.0.0/1"}},
		"bits behind mask":  {with("[10.1.2.3/16]"), []string{"cluster.podCIDRs", "10.1.2.3/16", "10.1.0.0/16"}},
		"unknown field":     {good + "clutser: {}\n", []string{"clutser"}},
		"advertise no host": {good + "apiserver: {advertise: [':7473', '[]:7473', 'a b:7473']}\n", []string{`":7473"`, `"[]:7473"`, `"a b:7473"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.yaml))
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %s in it", err, want)
				}
			}
		})
	}
}

package arch

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sources are the files of the project whose names match pattern, and their text.
func sources(t *testing.T, pattern string) map[string]string {
	t.Helper()
	names, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", "-co", "--exclude-standard", pattern).Output()
	if err != nil {
		t.Fatalf("list files: %v", err)
	}
	out := map[string]string{}
	for name := range strings.FieldsSeq(string(names)) {
		b, err := os.ReadFile("../../" + name)
		if os.IsNotExist(err) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// TestMetricsDocumented: docs/metrics.md lists exactly the metrics that the code
// names; those of the resolver have CoreDNS's names.
func TestMetricsDocumented(t *testing.T) {
	name := regexp.MustCompile(`"((?:clustermesh|coredns)_[a-z_]+)"`)
	var code []string
	for f, text := range sources(t, "*.go") {
		if strings.HasSuffix(f, "_test.go") || strings.HasPrefix(f, "test/") {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			code = append(code, m[1])
		}
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("\\| `((?:clustermesh|coredns)_[a-z_]+)`").FindAllStringSubmatch(string(doc), -1) {
		listed = append(listed, m[1])
	}
	for _, n := range code {
		if !slices.Contains(listed, n) {
			t.Errorf("%s is not in docs/metrics.md", n)
		}
	}
	for _, n := range listed {
		if !slices.Contains(code, n) {
			t.Errorf("docs/metrics.md lists %s, which no code names", n)
		}
	}
}

package arch

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestMetricsDocumented: docs/metrics.md lists exactly the metrics that the code names.
func TestMetricsDocumented(t *testing.T) {
	files, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", "-co", "--exclude-standard", "*.go").Output()
	if err != nil {
		t.Fatalf("list files: %v", err)
	}
	name := regexp.MustCompile(`"(clustermesh_[a-z_]+)"`)
	var code []string
	for f := range strings.FieldsSeq(string(files)) {
		if strings.HasSuffix(f, "_test.go") || strings.HasPrefix(f, "test/") {
			continue
		}
		b, err := os.ReadFile("../../" + f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllStringSubmatch(string(b), -1) {
			code = append(code, m[1])
		}
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("\\| `(clustermesh_[a-z_]+)`").FindAllStringSubmatch(string(doc), -1) {
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

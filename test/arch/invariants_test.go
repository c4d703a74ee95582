package arch

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

var (
	// number is how docs/invariants.md sets a number.
	number = regexp.MustCompile(`(?m)^- \*\*([A-Z][0-9]+)\*\*`)
	// citation is how a test cites some: "invariant W3", "invariants R1, V5 and V8".
	citation  = regexp.MustCompile(`\b[Ii]nvariants? ([A-Z][0-9]+\b(?:(?:,? and |, )[A-Z][0-9]+\b)*)`)
	cited     = regexp.MustCompile(`[A-Z][0-9]+`)
	lineBreak = regexp.MustCompile(`\s*\n\s*// *`)
)

// citations are the numbers of the invariants that a text cites, also over the
// end of a comment's line.
func citations(text string) (out []string) {
	for _, m := range citation.FindAllStringSubmatch(lineBreak.ReplaceAllString(text, " "), -1) {
		out = append(out, cited.FindAllString(m[1], -1)...)
	}
	return out
}

// TestInvariantsCited: each number in docs/invariants.md stands in a test, where
// one looks for what proves it, and tests cite no other number.
func TestInvariantsCited(t *testing.T) {
	doc, err := os.ReadFile("../../docs/invariants.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, proven []string
	for _, m := range number.FindAllStringSubmatch(string(doc), -1) {
		listed = append(listed, m[1])
	}
	for file, text := range sources(t, "*_test.go") {
		if file == "test/arch/invariants_test.go" {
			continue // these are examples
		}
		for _, n := range citations(text) {
			proven = append(proven, n)
			if !slices.Contains(listed, n) {
				t.Errorf("%s cites invariant %s, which docs/invariants.md does not list", file, n)
			}
		}
	}
	for _, n := range listed {
		if !slices.Contains(proven, n) {
			t.Errorf("no test cites invariant %s: have the doc comment of the test that proves it say \"invariant %s\"", n, n)
		}
	}
	if len(listed) == 0 {
		t.Error("docs/invariants.md lists no numbers in the form that is looked for")
	}
}

func TestCitations(t *testing.T) {
	for text, want := range map[string][]string{
		"// (invariant W3).":                      {"W3"},
		"// Invariant W3: no":                     {"W3"},
		"// TestX (invariants R1, V5):":           {"R1", "V5"},
		"// invariants R1, V5 and V8 hold":        {"R1", "V5", "V8"},
		"// invariants R1, V5, and V8 hold":       {"R1", "V5", "V8"},
		"// (invariants\n\t// R1,\n\t// V5) hold": {"R1", "V5"},
		"a.V4, invariant of V6":                   nil,
	} {
		if got := citations(text); !slices.Equal(got, want) {
			t.Errorf("citations of %q: %v, want %v", text, got, want)
		}
	}
}

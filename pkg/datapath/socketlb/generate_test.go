package socketlb

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestObjectIsOfSource: the committed object was made after the last change of
// the C source.
func TestObjectIsOfSource(t *testing.T) {
	source, err := os.ReadFile("socketlb.c")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("socketlb.c.sha256")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(source)); !strings.HasPrefix(string(want), got) {
		t.Error("socketlb.c has changed since the object was made: run make generate")
	}
}

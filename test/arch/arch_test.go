// Package arch checks the shape of the code: who may import whom.
package arch

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/clustermesh/clustermesh/"

// layers from the bottom up: a package imports only from layers below its own.
// Packages of one layer do not import each other, unless together says so.
var layers = [][]string{
	{"pkg/version", "pkg/model", "pkg/hash", "pkg/testutil"},
	{"pkg/wire", "pkg/state", "pkg/status", "pkg/pki", "pkg/image", "charts"},
	{"pkg/config", "pkg/reconcile", "pkg/ipam", "pkg/lbpool", "pkg/mcs", "pkg/kube/v1alpha1"},
	{"pkg/plan", "pkg/service", "pkg/podnet/journal", "pkg/dns/zone"},
	{"pkg/datapath", "pkg/kube", "pkg/kvstore", "pkg/dns"},
	{"pkg/mesh", "pkg/podnet"},
	{"cmd", "clustermesh-apiserver"},
	{"test"},
}

// together are the packages that may import others of their own layer.
var together = []string{"pkg/datapath", "pkg/config", "clustermesh-apiserver", "cmd", "test"}

// pure packages decide and do no I/O, so that every decision can be tested
// with a table and repeated from a log.
var pure = []string{"pkg/model", "pkg/hash", "pkg/wire", "pkg/state", "pkg/plan", "pkg/service", "pkg/ipam", "pkg/lbpool", "pkg/mcs", "pkg/dns/zone"}

// impure are what a pure package must not import, with what to do instead.
var impure = map[string]string{
	"os": "take the contents as an argument", "os/exec": "let a target do it", "net/http": "let a source or target do it",
	"net": "use net/netip for addresses", "syscall": "let a target do it", "golang.org/x/sys/unix": "let a target do it",
	"log/slog": "return an error or a status line", "math/rand": "take a source of numbers as an argument", "math/rand/v2": "take a source of numbers as an argument",
	"github.com/vishvananda/netlink": "let pkg/datapath do it",
}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports", module+"...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// layerOf is the layer of a package and the entry that put it there: the
// longest one that is the package or a folder above it.
func layerOf(path string) (layer int, entry string) {
	layer = -1
	for i, entries := range layers {
		for _, e := range entries {
			if (path == e || strings.HasPrefix(path, e+"/")) && len(e) > len(entry) {
				layer, entry = i, e
			}
		}
	}
	return layer, entry
}

// TestLayers: imports point down only (invariant A1).
func TestLayers(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		layer, entry := layerOf(from)
		if layer < 0 {
			t.Errorf("%s stands in no layer: add it to layers", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			below, target := layerOf(to)
			same := below == layer && (entry == target || slices.Contains(together, entry))
			if below > layer || below == layer && !same {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports point down only; move what both need below, or have the caller pass it in", from, layer, to, below)
			}
		}
	}
}

// TestPure: packages that decide do no I/O (invariant A2).
func TestPure(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(pure, from) {
			continue
		}
		for _, imp := range p.Imports {
			if instead, bad := impure[imp]; bad {
				t.Errorf("%s imports %s but is pure: %s", from, imp, instead)
			}
		}
	}
}

// clocks are what of package time asks the clock or waits for it.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}

// TestPureHasNoClock: packages that decide are told what time it is (invariant
// A2). Their types may hold times, so the import itself is no offence.
func TestPureHasNoClock(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(pure, from) {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, use := range clockUses(file) {
				t.Errorf("%s:%d uses time.%s but %s is pure: take the time as an argument", name, fset.Position(use.Pos()).Line, use.Sel.Name, from)
			}
		}
	}
}

// clockUses are the mentions of clocks in a file, under whatever name it imports
// package time.
func clockUses(file *ast.File) (out []*ast.SelectorExpr) {
	local := ""
	for _, imp := range file.Imports {
		if imp.Path.Value == `"time"` {
			local = "time"
			if imp.Name != nil {
				local = imp.Name.Name
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(clocks, sel.Sel.Name) {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local {
				out = append(out, sel)
			}
		}
		return true
	})
	return out
}

func TestClockUses(t *testing.T) {
	for src, want := range map[string]int{
		`import "time"; var d = 3 * time.Second`:                   0,
		`import "time"; func f(now time.Time) { now.After(now) }`:  0,
		`import "time"; var f, g = time.Now, time.Since(t)`:        2,
		`import x "time"; func f() { x.Sleep(1); <-x.After(1) }`:   2,
		`import "example.com/clock"; func f() { clock.Now() }`:     0,
		`func f() { time.Now() }; var time interface{ Now() int }`: 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x;"+src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(clockUses(file)); got != want {
			t.Errorf("%s: %d uses of the clock, want %d", src, got, want)
		}
	}
}

// TestTargetsApart: kernel targets know nothing of each other (invariant A3);
// pkg/datapath/nl is what they share.
func TestTargetsApart(t *testing.T) {
	const dir = "pkg/datapath/"
	for _, p := range list(t) {
		from, ok := strings.CutPrefix(strings.TrimPrefix(p.ImportPath, module), dir)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module+dir)
			if ok && to != "nl" {
				t.Errorf("%s%s imports %s%s: targets never import each other; what must change together is one target", dir, from, dir, to)
			}
		}
	}
}

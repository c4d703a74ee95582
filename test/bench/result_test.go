package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFigure(t *testing.T) {
	for name, c := range map[string]struct {
		samples  []float64
		want     float64
		min, max float64
	}{
		"one":       {[]float64{4}, 4, 4, 4},
		"odd":       {[]float64{9, 1, 5}, 5, 1, 9},
		"unsorted":  {[]float64{3, 2, 5, 4, 1}, 3, 1, 5},
		"even goes": {[]float64{1, 2, 3, 4}, 3, 1, 4},
	} {
		t.Run(name, func(t *testing.T) {
			got := figure("x", "s", c.samples...)
			if got.Value != c.want || got.Min != c.min || got.Max != c.max {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestLatencies(t *testing.T) {
	var took []time.Duration
	for i := range 101 {
		took = append(took, time.Duration(100-i)*time.Millisecond)
	}
	p50, p99 := latencies("x", took)
	if p50.Value != 50 || p99.Value != 99 || p99.Name != "x-p99" || p99.Max != 100 {
		t.Errorf("%+v, %+v", p50, p99)
	}
}

// TestJudge: the share is taken round by round, the tunnel has its own target,
// and the bridge plugin's share is the least of everything, also of the tunnel.
func TestJudge(t *testing.T) {
	of := func(host, other float64) *series {
		s := &series{}
		for _, verb := range verbs {
			for _, path := range paths {
				s.add(path, verb, other)
			}
			s.values[pathHost+"/"+verb][0] = host
		}
		return s
	}
	bridge := of(100, 90)
	bridge.values["nodes/crr"][0] = 80.3
	for name, c := range map[string]struct {
		backend, figure, target string
		met                     bool
	}{
		"direct":                 {"direct", "datapath/direct/nodes/rr", ">= 0.75", true},
		"direct, behind bridge":  {"direct", "datapath/direct/nodes-to-bridge/rr", ">= 1", false},
		"tunnel":                 {"vxlan", "datapath/vxlan/nodes/rr", ">= 0.55", true},
		"tunnel, no target":      {"vxlan", "datapath/vxlan/nodes/crr", "", false},
		"tunnel, behind bridge":  {"vxlan", "datapath/vxlan/nodes-to-bridge/rr", ">= 1", false},
		"tunnel, behind, stream": {"vxlan", "datapath/vxlan/clusters-to-bridge/stream", ">= 1", false},
		"tunnel, as the bridge":  {"vxlan", "datapath/vxlan/nodes-to-bridge/crr", ">= 1", true},
		"tunnel, one node":       {"vxlan", "datapath/vxlan/one-node-to-bridge/stream", ">= 1", false},
		"across over within":     {"vxlan", "datapath/vxlan/clusters-to-nodes/crr", ">= 0.97", true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range judge(c.backend, of(100, 80), bridge) {
				if r.Name != c.figure {
					continue
				}
				if r.Target != c.target || c.target != "" && *r.Met != c.met {
					t.Errorf("%+v", r)
				}
				return
			}
			t.Error("there is no such figure")
		})
	}
}

// TestPrintTable: a note stands beside its reference.
func TestPrintTable(t *testing.T) {
	var out strings.Builder
	printTable(&out, []Result{figure("a/b", "s", 2).atMost(3).reference(2.9).note("99 by default"), figure("c", "MiB", 1).atLeast(2)})
	want := `FIGURE  VALUE  UNIT  MIN..MAX    REFERENCE             TARGET  MET
a/b     2.00   s     2.00..2.00  2.90 (99 by default)  <= 3    yes
c       1.00   MiB   1.00..1.00                        >= 2    NO
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestWriteJSON: what other tools read.
func TestWriteJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bin", "bench.json")
	if err := writeJSON(path, []Result{figure("a/b", "s", 2).atMost(3).reference(57).note("by default"), figure("c", "MiB", 1)}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil || len(got) != 2 {
		t.Fatalf("%v: %s", err, b)
	}
	if got[0]["reference_note"] != "by default" || got[1]["reference_note"] != nil {
		t.Errorf("notes: %s", b)
	}
	if got[0]["target"] != "<= 3" || got[0]["met"] != true || got[0]["reference"] != 57.0 || got[1]["met"] != nil || got[1]["reference"] != nil {
		t.Errorf("%s", b)
	}
}

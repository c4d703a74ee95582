package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// Result is a figure. Value is the median of its samples if there are several.
type Result struct {
	Name string `json:"name"`
	// Unit: share, 1/s, Gbit/s, s, ms, MiB or rows.
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
	// Reference is what another product reaches in the same unit: the CNI bridge
	// plugin measured by the same run, or what is published of Cilium's KVStoreMesh.
	Reference *float64 `json:"reference"`
	// ReferenceNote says more about the reference, if a number alone would mislead.
	ReferenceNote string `json:"reference_note,omitempty"`
	// Target is what is asked for, as ">= 0.75" or "<= 20"; empty if nothing is.
	Target string `json:"target,omitempty"`
	Met    *bool  `json:"met"`
}

// figure is a result of samples, which must not be empty.
func figure(name, unit string, samples ...float64) Result {
	s := slices.Sorted(slices.Values(samples))
	return Result{Name: name, Unit: unit, Value: quantile(s, 0.5), Min: s[0], Max: s[len(s)-1]}
}

// quantile of sorted samples, by the nearest rank.
func quantile(sorted []float64, q float64) float64 {
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// latencies are two results, the median and the 99th percentile, in milliseconds.
func latencies(name string, took []time.Duration) (p50, p99 Result) {
	var ms []float64
	for _, d := range took {
		ms = append(ms, float64(d.Microseconds())/1000)
	}
	slices.Sort(ms)
	p50 = Result{Name: name + "-p50", Unit: "ms", Value: quantile(ms, 0.5), Min: ms[0], Max: ms[len(ms)-1]}
	p99 = p50
	p99.Name, p99.Value = name+"-p99", quantile(ms, 0.99)
	return p50, p99
}

// atMost and atLeast set the target.
func (r Result) atMost(limit float64) Result  { return r.target("<=", limit, r.Value <= limit) }
func (r Result) atLeast(limit float64) Result { return r.target(">=", limit, r.Value >= limit) }

func (r Result) target(op string, limit float64, met bool) Result {
	r.Target, r.Met = op+" "+short(limit), &met
	return r
}

// reference sets what others reach.
func (r Result) reference(v float64) Result {
	r.Reference = &v
	return r
}

// note says more about the reference.
func (r Result) note(s string) Result {
	r.ReferenceNote = s
	return r
}

func short(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// significant has three digits, or all before the point.
func significant(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func printTable(w io.Writer, results []Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FIGURE\tVALUE\tUNIT\tMIN..MAX\tREFERENCE\tTARGET\tMET")
	for _, r := range results {
		reference, met := "", ""
		if r.Reference != nil {
			reference = significant(*r.Reference)
		}
		if r.ReferenceNote != "" {
			reference += " (" + r.ReferenceNote + ")"
		}
		if r.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*r.Met]
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s..%s\t%s\t%s\t%s\n", r.Name, significant(r.Value), r.Unit,
			significant(r.Min), significant(r.Max), reference, r.Target, met)
	}
	t.Flush()
}

// writeJSON writes a list, also if it is empty.
func writeJSON(path string, results []Result) error {
	if results == nil {
		results = []Result{}
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
)

func toUnstructured(peer *v1alpha1.Peer) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(peer)
	return &unstructured.Unstructured{Object: content}, err
}

func runConnect(t *testing.T, options connectFlags, source *world, destinations ...*world) (out, progress string, err error) {
	t.Helper()
	options.wait = true
	var printed, shown bytes.Buffer
	run := &connecting{options: &options, in: strings.NewReader(""), out: &printed, show: newProgress(&shown)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var members []*member
	for _, destination := range destinations {
		members = append(members, destination.member)
	}
	err = run.connect(ctx, source.member, members)
	return printed.String(), shown.String(), err
}

func wantSpec(of *world, podCIDR string, endpoints ...string) v1alpha1.PeerSpec {
	return v1alpha1.PeerSpec{Endpoints: endpoints, Trust: v1alpha1.PeerTrust{CABundle: of.ca}, Import: v1alpha1.Import{PodCIDRs: []string{podCIDR}}}
}

func TestConnectWritesBothSidesAndIsIdempotent(t *testing.T) {
	west, east := newWorld(t, "west", "1"), newWorld(t, "east", "2")
	west.closed[east.endpoint("1")] = "connection refused"
	out, shown, err := runConnect(t, connectFlags{}, west, east)
	if err != nil {
		t.Fatal(err)
	}
	if out != "Clusters west and east are connected.\n" || !strings.Contains(shown, "warning: cluster east: endpoint mesh-1.east.example:7473 is unreachable") {
		t.Errorf("printed %q and %q", out, shown)
	}
	wantWest := map[string]v1alpha1.PeerSpec{"east": wantSpec(east, "10.2.0.0/16", east.endpoint("2"), east.endpoint("1"))}
	if diff := cmp.Diff(wantWest, west.peers(t)); diff != "" {
		t.Errorf("peers of west (-want +got):\n%s", diff)
	}
	wantEast := map[string]v1alpha1.PeerSpec{"west": wantSpec(west, "10.1.0.0/16", west.endpoint("1"), west.endpoint("2"))}
	if diff := cmp.Diff(wantEast, east.peers(t)); diff != "" {
		t.Errorf("peers of east (-want +got):\n%s", diff)
	}
	for _, options := range []connectFlags{{}, {refresh: true}} {
		if _, _, err := runConnect(t, options, west, east); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"apply east"}, west.writes); diff != "" {
		t.Errorf("writes in west after three runs (-want +got):\n%s", diff)
	}
}

// Whatever step fails, both clusters hold afterwards what they held before.
func TestConnectLeavesNothingHalfDone(t *testing.T) {
	refuseApply := func(atRehearsal bool) func(string, bool) error {
		return func(verb string, rehearsal bool) error {
			if verb == "patch" && rehearsal == atRehearsal {
				return errors.New("admission webhook said no")
			}
			return nil
		}
	}
	for _, test := range []struct {
		name    string
		change  func(west, east *world)
		options connectFlags
		want    []string
	}{
		{"second write refused", func(_, east *world) { east.refuse = refuseApply(false) }, connectFlags{},
			[]string{"context ctx-east: apply peer west: admission webhook said no", "taken back"}},
		{"first write refused", func(west, _ *world) { west.refuse = refuseApply(false) }, connectFlags{},
			[]string{"context ctx-west: apply peer east: admission webhook said no"}},
		{"both would be refused", func(west, east *world) { west.refuse, east.refuse = refuseApply(true), refuseApply(true) }, connectFlags{},
			[]string{"2 problems, nothing was changed", "context ctx-west: apply peer east: admission", "context ctx-east: apply peer west: admission"}},
		{"nothing reachable", func(west, east *world) {
			west.closed[east.endpoint("1")], west.closed[east.endpoint("2")] = "i/o timeout", "no route to host"
		}, connectFlags{}, []string{"2 problems, nothing was changed", "mesh-1.east.example:7473 is unreachable from west: i/o timeout", "mesh-2", "no route to host"}},
		{"dry run", func(*world, *world) {}, connectFlags{dryRun: true}, nil},
		{"dry run as YAML", func(*world, *world) {}, connectFlags{dryRun: true, output: "yaml"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			west, east := newWorld(t, "west", "1"), newWorld(t, "east", "2")
			test.change(west, east)
			_, _, err := runConnect(t, test.options, west, east)
			if (err == nil) != (test.want == nil) {
				t.Fatalf("error: %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not mention %q", err, want)
				}
			}
			west.refuse, east.refuse = nil, nil
			if left := len(west.peers(t)) + len(east.peers(t)); left != 0 {
				t.Errorf("%d peers are left: %v %v", left, west.writes, east.writes)
			}
		})
	}
}

func TestConnectOneWithMany(t *testing.T) {
	hub, east, north := newWorld(t, "hub", "1"), newWorld(t, "east", "2"), newWorld(t, "north", "3")
	out, _, err := runConnect(t, connectFlags{}, hub, east, north)
	if err != nil {
		t.Fatal(err)
	}
	if want := "Clusters hub and east are connected.\nClusters hub and north are connected.\n"; out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if len(hub.peers(t)) != 2 || len(east.peers(t)) != 1 || len(north.peers(t)) != 1 {
		t.Errorf("peers: hub %d, east %d, north %d", len(hub.peers(t)), len(east.peers(t)), len(north.peers(t)))
	}
	twin := newWorld(t, "twin", "2")
	hub, east = newWorld(t, "hub", "1"), newWorld(t, "east", "2")
	_, _, err = runConnect(t, connectFlags{}, hub, east, twin)
	if err == nil || !strings.Contains(err.Error(), "podCIDR 10.2.0.0/16 overlaps podCIDR 10.2.0.0/16 of east") || len(hub.writes) != 0 {
		t.Errorf("two destinations that overlap: %v, writes %v", err, hub.writes)
	}
}

// A CA that was replaced is refused by a plain connect and taken over by a refresh with consent, which a failure undoes.
func TestConnectRefresh(t *testing.T) {
	west, east := newWorld(t, "west", "1"), newWorld(t, "east", "2")
	if _, _, err := runConnect(t, connectFlags{}, west, east); err != nil {
		t.Fatal(err)
	}
	before := west.peers(t)
	east.ca = testCA(t, "east")
	_, _, err := runConnect(t, connectFlags{}, west, east)
	if err == nil || !strings.Contains(err.Error(), "peer east in context ctx-west: spec.trust.caBundle") || !strings.Contains(err.Error(), "--context ctx-west --destination-context ctx-east --refresh") {
		t.Errorf("plain connect: %v", err)
	}
	if _, _, err := runConnect(t, connectFlags{refresh: true}, west, east); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("refresh without an answer: %v", err)
	}
	if diff := cmp.Diff(before, west.peers(t)); diff != "" {
		t.Errorf("peers of west changed without consent:\n%s", diff)
	}
	out, _, err := runConnect(t, connectFlags{refresh: true, yes: true}, west, east)
	if err != nil || !strings.Contains(out, "spec.trust.caBundle\n      - CA east, SHA-256") {
		t.Errorf("refresh: %v, printed %s", err, out)
	}
	if got := west.peers(t)["east"].Trust.CABundle; got != east.ca {
		t.Error("the new CA is not in the Peer")
	}
}

func TestRefreshUndo(t *testing.T) {
	west, east := newWorld(t, "west", "1"), newWorld(t, "east", "2")
	if _, _, err := runConnect(t, connectFlags{}, west, east); err != nil {
		t.Fatal(err)
	}
	before := west.peers(t)
	west.ca, east.ca = testCA(t, "west"), testCA(t, "east")
	east.refuse = func(verb string, rehearsal bool) error {
		if verb == "patch" && !rehearsal {
			return errors.New("no")
		}
		return nil
	}
	if _, _, err := runConnect(t, connectFlags{refresh: true, yes: true}, west, east); err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(before, west.peers(t)); diff != "" {
		t.Errorf("peer of west is not as before (-want +got):\n%s", diff)
	}
}

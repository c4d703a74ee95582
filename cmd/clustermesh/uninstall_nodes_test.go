package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/testutil"
)

// The cleaner must be made from the DaemonSet that the chart renders, so the test takes that one.
func TestCleanupDaemonSet(t *testing.T) {
	set := &appsv1.DaemonSet{}
	for _, document := range splitManifests(render(t, parseValues(t, minimal))) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Kind == "DaemonSet" {
			if err := yaml.UnmarshalStrict([]byte(document), set); err != nil {
				t.Fatal(err)
			}
		}
	}
	cleaner := cleanupDaemonSet(set)
	got, err := yaml.Marshal(cleaner.Spec)
	if err != nil {
		t.Fatal(err)
	}
	testutil.Golden(t, "cleanup-daemonset.golden.yaml", got)
	if diff := cmp.Diff(cleaner, cleanupDaemonSet(cleaner)); diff != "" {
		t.Errorf("a second uninstall changes the cleaner again:\n%s", diff)
	}
}

func TestJudgeCleaning(t *testing.T) {
	pod := func(node, verb string, ready corev1.ConditionStatus) corev1.Pod {
		return corev1.Pod{
			Spec:   corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Args: []string{verb}}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
		}
	}
	node := func(name string, ready corev1.ConditionStatus) corev1.Node {
		return corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
		}
	}
	const yes, no, silent = corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown
	tests := map[string]struct {
		observed    int64
		pods        []corev1.Pod
		nodes       []corev1.Node
		done, force bool
	}{
		"all clean":                 {2, []corev1.Pod{pod("a", "cleanup", yes), pod("b", "cleanup", yes)}, []corev1.Node{node("a", yes), node("b", yes)}, true, true},
		"controller has not seen":   {1, []corev1.Pod{pod("a", "cleanup", yes), pod("b", "cleanup", yes)}, nil, false, false},
		"one still cleaning":        {2, []corev1.Pod{pod("a", "cleanup", yes), pod("b", "cleanup", no)}, []corev1.Node{node("a", yes), node("b", yes)}, false, false},
		"one still an agent":        {2, []corev1.Pod{pod("a", "cleanup", yes), pod("b", "--config", yes)}, []corev1.Node{node("a", yes), node("b", yes)}, false, false},
		"node without CNI reports":  {2, []corev1.Pod{pod("a", "cleanup", yes)}, []corev1.Node{node("a", no), node("b", no)}, false, false},
		"one node gone":             {2, []corev1.Pod{pod("a", "cleanup", yes)}, []corev1.Node{node("a", yes), node("b", silent)}, false, true},
		"gone node was clean":       {2, []corev1.Pod{pod("a", "cleanup", yes), pod("b", "cleanup", no)}, []corev1.Node{node("a", silent), node("b", yes)}, false, false},
		"nothing cleaned, all gone": {2, nil, []corev1.Node{node("a", silent), node("b", silent)}, false, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			set := &appsv1.DaemonSet{
				ObjectMeta: metav1.ObjectMeta{Generation: 2},
				Status:     appsv1.DaemonSetStatus{ObservedGeneration: tt.observed, DesiredNumberScheduled: 2},
			}
			got := judgeCleaning(set, tt.pods, tt.nodes)
			if got.done(false) != tt.done || got.done(true) != tt.force {
				t.Errorf("done %v, with --force %v; want %v, %v (%+v)", got.done(false), got.done(true), tt.done, tt.force, got)
			}
		})
	}
}

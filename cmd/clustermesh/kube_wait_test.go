package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodTrouble(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	ended := func(code int32, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message}}
	}
	tests := map[string]struct {
		status corev1.PodStatus
		want   string
	}{
		"ready": {corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}, ""},
		"no node fits": {corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/2 nodes are available: no free ports. preemption: none"}}},
			"0/2 nodes are available: no free ports"},
		"image": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: waiting("ImagePullBackOff", "not found")}}},
			"ImagePullBackOff: not found"},
		"creating": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: waiting("ContainerCreating", "")}}},
			"ContainerCreating"},
		"crash loop": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
			State: waiting("CrashLoopBackOff", "back-off 10s"), LastTerminationState: ended(1, "starting\nno such device\n")}}},
			"CrashLoopBackOff, exit code 1: no such device"},
		"just ended": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: ended(2, "panic")}}},
			"ended, exit code 2: panic"},
		"runs": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}},
			"runs, not ready"},
		"fresh": {corev1.PodStatus{}, "kubelet has not started it"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := podTrouble(&corev1.Pod{Status: tt.status}); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestDescribeTroubles(t *testing.T) {
	pod := func(component, node, reason string) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{componentLabel: component}},
			Spec:       corev1.PodSpec{NodeName: node},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}},
		}
	}
	tests := map[string]struct {
		pods []corev1.Pod
		want string
	}{
		"none": {nil, ""},
		"one reason": {[]corev1.Pod{pod("agent", "b", "ErrImagePull"), pod("agent", "a", "ErrImagePull")},
			" (agent on a, agent on b: ErrImagePull)"},
		"two reasons": {[]corev1.Pod{pod("agent", "a", "ErrImagePull"), pod("apiserver", "", "ContainerCreating")},
			" (agent on a: ErrImagePull; apiserver: ContainerCreating)"},
		"many nodes": {[]corev1.Pod{pod("agent", "a", "X"), pod("agent", "b", "X"), pod("agent", "c", "X"), pod("agent", "d", "X"), pod("agent", "e", "X")},
			" (agent on a, agent on b, agent on c, and 2 more: X)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := describeTroubles(tt.pods); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/testutil"
)

var testNow = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func testPod(name, node string, ready bool) corev1.Pod {
	value := corev1.ConditionFalse
	if ready {
		value = corev1.ConditionTrue
	}
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{componentLabel: agentComponent}},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: value}},
			ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}}
}

func testAgent(n int) answer[status.Agent] {
	return answer[status.Agent]{Pod: testPod(fmt.Sprintf("clustermesh-agent-%03d", n), fmt.Sprintf("w%03d", n), true),
		Said: &status.Agent{Version: "0.1.0", Ready: true, Backend: "auto", MTU: 1450, Pods: n,
			Nodes: []status.Remote{{Cluster: "west", Node: "x"}, {Cluster: "east", Node: "y"}}}}
}

func testNode(name string) corev1.Node {
	return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// healthy is a cluster of two nodes with one peer.
func healthy() observed {
	peer := testPeer("east", "10.2.0.0/16")
	peer.CreationTimestamp = metav1.NewTime(testNow.Add(-26 * time.Hour))
	peer.Status = v1alpha1.PeerStatus{Announced: &v1alpha1.Announced{Version: "0.1.1"}, Endpoint: "172.18.0.2:7473", Nodes: 2,
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionConnected, Status: "True"}, {Type: v1alpha1.ConditionSynced, Status: "True"}}}
	server := &status.APIServer{Cluster: "west", Version: "0.1.0", Leader: true, Rows: 14, Peers: []status.Peer{{
		Name: "east", Connected: true, Synced: true, Endpoint: "172.18.0.2:7473", HeartbeatSeconds: 2.4,
		Since: testNow.Add(-10 * time.Minute), Counts: map[string]int{"node": 2, "cluster": 1}}}}
	return observed{Context: "ctx-west", Namespace: defaultNamespace, Cluster: "west", Peers: []v1alpha1.Peer{peer},
		Nodes:   []corev1.Node{testNode("w001"), testNode("w002")},
		Servers: []answer[status.APIServer]{{Pod: testPod("clustermesh-apiserver-0", "w001", true), Said: server}},
		Agents:  []answer[status.Agent]{testAgent(1), testAgent(2)}}
}

func TestStatusReport(t *testing.T) {
	for name, change := range map[string]func(*observed){
		"healthy": func(*observed) {},
		"no-peers": func(o *observed) {
			o.Peers, o.Servers[0].Said.Peers = nil, nil
		},
		"unreachable": func(o *observed) {
			*o = observed{Context: o.Context, Err: remedied{errors.New("reach Kubernetes at https://192.0.2.1: timeout"), "check it"}}
		},
		"no-apiserver": func(o *observed) { o.Servers = nil },
		"links-in-trouble": func(o *observed) {
			south, north := testPeer("south"), testPeer("north")
			south.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: "False", Reason: "Overlap",
				Message: "podCIDR 10.2.0.0/16 overlaps peer east"}}
			o.Peers = append(o.Peers, north, south)
			said := o.Servers[0].Said
			said.Peers[0].Refused = []status.Refusal{
				{Reason: "foreign-cluster", Count: 1, Example: "node/evil", Message: "names cluster\x1b[2J third"},
				{Reason: "outside-import", Count: 12, Example: "node/e7", Message: "10.9.0.0/24 is outside 10.2.0.0/16"}}
			said.Peers = append(said.Peers, status.Peer{Name: "north", HeartbeatSeconds: 754, Since: testNow.Add(-9 * time.Minute), Synced: true,
				Counts: map[string]int{"node": 5}, Error: "172.18.0.9:7473: dial tcp: no route to host"})
			second := *said
			second.Leader = false
			second.Peers = []status.Peer{{Name: "east", Error: "x509: certificate has expired"}}
			o.Servers = append(o.Servers, answer[status.APIServer]{Pod: testPod("clustermesh-apiserver-1", "w002", true), Said: &second})
		},
		"nodes-in-trouble": func(o *observed) {
			o.Nodes = append(o.Nodes, testNode("w003"), testNode("w004"), testNode("w005"))
			o.Agents[0].Said.Lines = []status.Line{
				{Key: status.Key{Component: "mtu"}, Level: status.Info, Message: "underlay 1500"},
				{Key: status.Key{Component: "routes", Object: "east/e1"}, Level: status.Down, Message: "set route 10.2.1.0/24: no buffer space", Remedy: "raise net.core.rmem_max"},
				{Key: status.Key{Component: "nft"}, Level: status.OK}}
			o.Agents[1] = answer[status.Agent]{Pod: o.Agents[1].Pod, Err: errors.New("run /clustermesh-agent status -o json in pod clustermesh-agent-002: context deadline exceeded")}
			o.Agents = append(o.Agents, testAgent(3))
			o.Agents[2].Pod = testPod("clustermesh-agent-003", "w003", false)
			o.Agents = append(o.Agents, testAgent(4))
		},
		"apiserver-silent": func(o *observed) {
			o.Servers[0] = answer[status.APIServer]{Pod: testPod("clustermesh-apiserver-0", "w001", false), Err: errors.New("container not found")}
			o.Peers[0].Status.Refused = []v1alpha1.Refused{{Reason: "limit", Count: 3}}
		},
		"many-nodes": func(o *observed) {
			o.Nodes = nil
			for i := 3; i < 60; i++ {
				o.Agents = append(o.Agents, testAgent(i))
			}
			o.Agents[40].Said.Lines = []status.Line{{Key: status.Key{Component: "journal"}, Level: status.Degraded, Message: "disk full"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			seen := healthy()
			change(&seen)
			cluster := judge(seen)
			report := meshReport{Level: cluster.Level, Clusters: []clusterReport{cluster}}
			testutil.Golden(t, "status-"+name+".txt", []byte(renderStatus(report, testNow, false).render(false)))
			asJSON, err := json.MarshalIndent(report, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if name != "many-nodes" {
				testutil.Golden(t, "status-"+name+".json", append(asJSON, '\n'))
			}
		})
	}
}

func TestStatusColour(t *testing.T) {
	text := &text{}
	text.table([][]cell{plains("NAME", "STATE", "X"), {plain("a"), {"down", status.Down}, plain("1")}, {plain("bcdef"), {"ok", status.OK}, plain("2")}})
	text.line(cell{"  ! bad", status.Degraded})
	testutil.Golden(t, "status-colour.txt", []byte(text.render(true)))
}

func TestPeerList(t *testing.T) {
	peers := append(healthy().Peers, testPeer("north", "10.3.0.0/16", "fd00:3::/48"))
	peers[1].CreationTimestamp = metav1.NewTime(testNow.Add(-5 * time.Second))
	testutil.Golden(t, "peers.txt", []byte(renderPeerList("ctx-west", peers, testNow).render(false)))
}

func TestFindTraces(t *testing.T) {
	gone := func(o *observed) {
		o.Peers, o.Servers[0].Said.Peers = nil, nil
		for i := range o.Agents {
			o.Agents[i].Said.Nodes = o.Agents[i].Said.Nodes[:1]
		}
	}
	for _, test := range []struct {
		name   string
		change func(*observed)
		want   string
	}{
		{"all", func(*observed) {}, "the Peer object, rows in clustermesh-apiserver-0, routes on w001, w002 to go"},
		{"nothing", gone, ""},
		{"routes on many", func(o *observed) {
			gone(o)
			for i := 3; i < 8; i++ {
				o.Agents = append(o.Agents, testAgent(i))
			}
		}, "routes on w003, w004, w005 and 2 more to go"},
		{"who is silent has nothing to show", func(o *observed) {
			gone(o)
			o.Agents = append(o.Agents, answer[status.Agent]{Pod: testPod("p", "w9", true), Err: errors.New("gone")})
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := healthy()
			test.change(&seen)
			left, got := findTraces(seen, "east"), ""
			if left.any() {
				got = left.String()
			}
			if got != test.want {
				t.Errorf("traces: %q, want %q", got, test.want)
			}
		})
	}
}

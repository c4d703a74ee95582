package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// perfPod is a pod that measures, or answers. Those of the path "host" are on the
// network of their nodes and else the same, so that only the network differs.
type perfPod struct {
	node *lab.Node
	name string
	host bool
	verb string // of labtool
}

// perfPods are all of a set-up.
type perfPods struct {
	cpu     string
	lab     *lab.Lab
	pods    []perfPod
	servers map[string]string  // address by path
	clients map[string]*client // by path
}

func (b *bench) startPods(ctx context.Context, l *lab.Lab) (*perfPods, error) {
	p := &perfPods{cpu: strconv.Itoa(b.cpu), lab: l, servers: map[string]string{}, clients: map[string]*client{}}
	err := p.start(ctx, l.Clusters[0].Nodes[0], l.Clusters[0].Nodes[1], l.Clusters[1].Nodes[0])
	if err != nil {
		p.stop(ctx)
		return nil, err
	}
	return p, nil
}

// start makes all pods: near is the node that the clients are on.
func (p *perfPods) start(ctx context.Context, near, far, other *lab.Node) error {
	servers := map[string]perfPod{
		pathHost:     {far, "perf-host", true, "perfserve"},
		pathOneNode:  {near, "perf-near", false, "perfserve"},
		pathNodes:    {far, "perf-far", false, "perfserve"},
		pathClusters: {other, "perf-other", false, "perfserve"},
	}
	pod, host := perfPod{near, "perf-pod", false, "sleep"}, perfPod{near, "perf-node", true, "sleep"}
	for _, path := range paths {
		p.pods = append(p.pods, servers[path])
	}
	p.pods = append(p.pods, pod, host)
	for _, s := range p.pods {
		if err := p.create(ctx, s); err != nil {
			return err
		}
	}
	for _, path := range paths {
		address, err := servers[path].address(ctx)
		if err != nil {
			return err
		}
		p.servers[path] = address
	}
	inPod, err := p.attach(ctx, pod)
	if err != nil {
		return err
	}
	inHost, err := p.attach(ctx, host)
	if err != nil {
		inPod.close()
		return err
	}
	p.clients = map[string]*client{pathHost: inHost, pathOneNode: inPod, pathNodes: inPod, pathClusters: inPod}
	return nil
}

func (s perfPod) kube() (kubernetes.Interface, error) { return s.node.Cluster().Client() }

func (p *perfPods) create(ctx context.Context, s perfPod) error {
	api, err := s.kube()
	if err != nil {
		return err
	}
	command := []string{"/bin/labtool", s.verb}
	if s.verb == "perfserve" {
		command = append(command, "--cpu", p.cpu)
	}
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: s.name},
		Spec: corev1.PodSpec{
			NodeName: s.node.Name, HostNetwork: s.host, TerminationGracePeriodSeconds: &grace,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "perf", Image: lab.ToolImage, Command: command,
				SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_NICE"}}}}},
		},
	}
	// The namespace's service account comes a moment after the cluster.
	err = fixture.Eventually(ctx, 20*time.Second, func() error {
		_, err := api.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, pod, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("make pod %s: %w", s.name, err)
	}
	return nil
}

// address waits for a pod and returns its first address.
func (s perfPod) address(ctx context.Context) (address string, err error) {
	api, err := s.kube()
	if err != nil {
		return "", err
	}
	return address, fixture.Eventually(ctx, time.Minute, func() error {
		p, err := api.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, s.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				address = p.Status.PodIP
				return nil
			}
		}
		return fmt.Errorf("pod %s on %s is %s", s.name, s.node.Name, p.Status.Phase)
	})
}

// attach starts the client in a pod.
func (p *perfPods) attach(ctx context.Context, s perfPod) (*client, error) {
	if _, err := s.address(ctx); err != nil {
		return nil, err
	}
	return startClient(s.node.Cluster().KubectlCommand(ctx, "exec", "-i", s.name, "--", "/bin/labtool", "perf", "--cpu", p.cpu))
}

// stop hangs up on the clients and deletes the pods, so that those of the next
// set-up can have their names and ports.
func (p *perfPods) stop(ctx context.Context) {
	for _, path := range []string{pathHost, pathNodes} {
		if c := p.clients[path]; c != nil {
			c.close()
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, s := range p.pods {
		if _, err := s.node.Cluster().Kubectl(ctx, "delete", "pod", s.name, "--ignore-not-found"); err != nil {
			progress("delete pod %s: %v", s.name, err)
		}
	}
}

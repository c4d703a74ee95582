package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KubectlCommand prepares kubectl for the cluster, for what Kubectl is too simple
// for: input, output while it runs.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.lab.parts.Dir, "kubectl"), args...)
	cmd.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "HOME=" + c.dir()}
	return cmd
}

// Kubectl runs kubectl and gives what it prints.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(c.KubectlCommand(ctx, args...))
}

// Apply is kubectl apply of a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	cmd := c.KubectlCommand(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	_, err := c.kubectl(cmd)
	return err
}

// PodExec runs argv in the pod's first container and gives what it prints.
func (c *Cluster) PodExec(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
	return c.Kubectl(ctx, append([]string{"exec", "-n", namespace, pod, "--"}, argv...)...)
}

func (c *Cluster) kubectl(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run kubectl %s on %s: %w: %s",
			strings.Join(cmd.Args[1:], " "), c.Name, err, lastLines(stderr.String()))
	}
	return stdout.String(), nil
}

// Tool is a pod of the ToolImage that serves.
type Tool struct {
	Namespace   string // default "default"
	Name        string
	Node        string // default: wherever it is scheduled
	HostNetwork bool
	Labels      map[string]string
}

// RunTool makes the pod, if it is not there, and waits until it is ready. It gives
// the pod's addresses.
func (c *Cluster) RunTool(ctx context.Context, t Tool) (Addrs, error) {
	if t.Namespace == "" {
		t.Namespace = metav1.NamespaceDefault
	}
	client, err := c.Client()
	if err != nil {
		return Addrs{}, err
	}
	pods := client.CoreV1().Pods(t.Namespace)
	var pod *corev1.Pod
	// The namespace's service account comes a moment after the namespace.
	err = poll(ctx, 30*time.Second, "pod "+t.Name+" to be accepted", func() (bool, error) {
		_, err := pods.Create(ctx, t.pod(), metav1.CreateOptions{})
		switch {
		case apierrors.IsForbidden(err):
			return false, nil
		case apierrors.IsAlreadyExists(err):
			return true, nil
		}
		return err == nil, err
	})
	if err != nil {
		return Addrs{}, fmt.Errorf("make pod %s/%s on %s: %w", t.Namespace, t.Name, c.Name, err)
	}
	err = poll(ctx, 90*time.Second, "pod "+t.Namespace+"/"+t.Name+" of "+c.Name+" to be ready", func() (bool, error) {
		pod, err = pods.Get(ctx, t.Name, metav1.GetOptions{})
		return err == nil && podReady(pod), nil
	})
	if err != nil {
		return Addrs{}, err
	}
	return podAddrs(pod)
}

func (t Tool) pod() *corev1.Pod {
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: t.Name, Labels: t.Labels},
		Spec: corev1.PodSpec{
			NodeName:                      t.Node,
			HostNetwork:                   t.HostNetwork,
			TerminationGracePeriodSeconds: &grace,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name:  "labtool",
				Image: ToolImage,
				Env: []corev1.EnvVar{
					{Name: "POD_NAME", ValueFrom: field("metadata.name")},
					{Name: "NODE_NAME", ValueFrom: field("spec.nodeName")},
				},
			}},
		},
	}
}

func podReady(pod *corev1.Pod) bool {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func podAddrs(pod *corev1.Pod) (Addrs, error) {
	var addrs Addrs
	for _, ip := range pod.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return Addrs{}, fmt.Errorf("parse address of pod %s: %w", pod.Name, err)
		}
		if addr.Is4() {
			addrs.V4 = addr
		} else {
			addrs.V6 = addr
		}
	}
	return addrs, nil
}

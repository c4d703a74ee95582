package lab

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PrintStatus writes what runs, for people.
func (l *Lab) PrintStatus(ctx context.Context, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "lab %s in %s, kubeconfig %s, programs %s\n\n", l.cfg.Name, l.Dir(), l.Kubeconfig(), l.BinDir())
	fmt.Fprintln(w, "CLUSTER\tNODE\tADDRESSES\tPOWER\tKUBERNETES\tNETNS")
	for _, c := range l.Clusters {
		ready := c.readiness(ctx)
		for _, n := range c.Nodes {
			power := "off"
			if n.Running() {
				power = "on"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, n.Name, n.Addrs, power, ready[n.Name], n.Netns())
		}
	}
	return w.Flush()
}

// readiness says per node what its API object says.
func (c *Cluster) readiness(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	states := map[string]string{}
	for _, n := range c.Nodes {
		states[n.Name] = "unknown"
	}
	client, err := c.Client()
	if err != nil {
		return states
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return states
	}
	for _, node := range nodes.Items {
		states[node.Name] = "NotReady"
		if isReady(&node) {
			states[node.Name] = "Ready"
		}
	}
	return states
}

// Command demo shows the product's main job on real Kubernetes: two clusters
// boot, become a mesh, and their pods reach each other without a gateway.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

const name = "demo"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch strings.Join(args, " ") {
	case "up":
		return (&demo{started: time.Now()}).up(ctx)
	case "down":
		return lab.Down(ctx, "", name)
	}
	return errors.New("usage: demo up|down")
}

type demo struct {
	started time.Time
	mesh    *fixture.Mesh
	pods    []fixture.Pod
}

// step prints what begins, does it, and prints how long it took.
func (d *demo) step(what string, do func() error) error {
	fmt.Printf("\n\033[1m==> %s\033[0m\n", what)
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Printf("    done in %.1f s (%.0f s in all)\n", time.Since(start).Seconds(), time.Since(d.started).Seconds())
	return nil
}

func (d *demo) up(ctx context.Context) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"Two Kubernetes clusters, west and east, 2 nodes each, boot in network namespaces", func() error { return d.boot(ctx) }},
		{"clustermesh install in both", func() error { return d.mesh.InstallAll(ctx) }},
		{"clustermesh connect --context west --destination-context east", func() error { return d.mesh.Connect(ctx, "west", "east") }},
		{"One pod on each node", func() error { return d.start(ctx) }},
		{"Pods of each cluster reach pods of the other: source preserved, no gateway", func() error { return d.reach(ctx) }},
		{"The path: one route per remote node", func() error { return d.path(ctx) }},
		{"clustermesh status", func() error { return d.status(ctx) }},
	}
	for _, s := range steps {
		if err := d.step(s.what, s.do); err != nil {
			return err
		}
	}
	d.epilogue()
	return nil
}

func (d *demo) boot(ctx context.Context) (err error) {
	d.mesh, err = fixture.Up(ctx, fixture.Config{Config: lab.Config{
		Name: name, Out: os.Stdout, Fresh: true, // so that it shows the same every time
		Clusters: []lab.ClusterConfig{{Name: "west", Nodes: 2}, {Name: "east", Nodes: 2}},
	}})
	return err
}

func (d *demo) start(ctx context.Context) (err error) {
	if d.pods, err = d.mesh.Probes(ctx); err != nil {
		return err
	}
	for _, p := range d.pods {
		fmt.Printf("    %-5s %-9s %-13s %s %s\n", p.Cluster, p.Node, p.Name, p.IPs.V4, p.IPs.V6)
	}
	return nil
}

func (d *demo) reach(ctx context.Context) error {
	fmt.Printf("    %-32s %-32s %-6s %-5s %s\n", "FROM", "TO", "FAMILY", "HOPS", "SOURCE SEEN, ROUND TRIP")
	for _, from := range d.pods {
		for _, to := range d.pods {
			if from.Cluster == to.Cluster {
				continue
			}
			if err := d.pair(ctx, from, to); err != nil {
				return err
			}
		}
	}
	fmt.Println("    2 hops: the sender's node and the receiver's node. Nothing is in between.")
	return nil
}

func (d *demo) pair(ctx context.Context, from, to fixture.Pod) error {
	exchanges, err := d.mesh.Reach(ctx, from, to)
	if err != nil {
		return err
	}
	for i, e := range exchanges {
		family := "IPv4"
		if to.IPs.All()[i].Is6() {
			family = "IPv6"
		}
		if e.Server.Hops != 2 || e.Hops != 2 {
			return fmt.Errorf("%s to %s: %d hops there and %d back, want 2: something is in between", from, to, e.Server.Hops, e.Hops)
		}
		src, _ := e.Source()
		fmt.Printf("    %-32s %-32s %-6s %-5d %s, %.2f ms\n", from.Node+" "+from.Name, to.Node+" "+to.Name, family, e.Server.Hops, src, e.RTTMillis)
	}
	return nil
}

// path prints the routes that the agent of west-n1 made, with standard tools.
func (d *demo) path(ctx context.Context) error {
	west, err := d.mesh.Cluster("west")
	if err != nil {
		return err
	}
	node, err := west.Node("west-n1")
	if err != nil {
		return err
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := node.Exec(ctx, "ip", family, "route", "show", "table", "7473")
		if err != nil {
			return err
		}
		fmt.Printf("    west-n1# ip %s route show table 7473\n", family)
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			fmt.Println("      ", line)
		}
	}
	return nil
}

func (d *demo) status(ctx context.Context) error {
	for _, c := range d.mesh.Clusters {
		out, err := d.mesh.CLI(ctx, "status", "--context", c.Name)
		fmt.Println(out)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) epilogue() {
	fmt.Printf(`
Look around:
  export KUBECONFIG=%s PATH=%s:%s:$PATH
  kubectl --context west get pods -A -o wide
  kubectl --context east get peers
  clustermesh status --context west
  %s        # a shell on a node: ip route show table 7473; nft list ruleset
Take it down:
  make demo-down
`, d.mesh.Kubeconfig(), filepath.Dir(d.mesh.Program()), d.mesh.BinDir(), "go run ./test/lab/cmd/lab exec --name demo west 2 bash")
}

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/test/lab"
)

// env is what commands share.
type env struct {
	out      io.Writer
	name     string
	exitCode int
}

func (e *env) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Real Kubernetes clusters in network namespaces of this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&e.name, "name", "lab", "the lab's name; several labs live side by side")
	root.AddCommand(e.build(), e.up(), e.down(), e.status(), e.exec(), e.kubeconfig())
	root.AddCommand(e.faults()...)
	return root
}

func (e *env) open() (*lab.Lab, error) { return lab.Open("", e.name) }

func (e *env) build() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build Kubernetes and the other programs of a lab, unless they are there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parts, err := lab.BuildParts(cmd.Context(), e.out)
			if err != nil {
				return err
			}
			fmt.Fprintln(e.out, "programs:", parts.Dir)
			return nil
		},
	}
}

func (e *env) up() *cobra.Command {
	var clusters []string
	cfg := lab.Config{Out: e.out}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a lab, or repair the one that is there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parsed, err := parseClusters(clusters)
			if err != nil {
				return err
			}
			cfg.Name, cfg.Clusters = e.name, parsed
			l, err := lab.Up(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "\nexport KUBECONFIG=%s\nexport PATH=%s:$PATH\n", l.Kubeconfig(), l.BinDir())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&clusters, "clusters", []string{"west=2", "east=2"}, "clusters and their numbers of nodes")
	f.StringVar((*string)(&cfg.Fabric), "fabric", string(lab.Shared), "shared: one layer 2; routed: a subnet per cluster")
	f.StringVar((*string)(&cfg.Stack), "stack", string(lab.Dual), "dual, ipv4 or ipv6")
	f.StringVar((*string)(&cfg.CNI), "cni", string(lab.NoCNI), "none, or bridge: the CNI bridge plugin and host routes")
	f.BoolVar(&cfg.BridgeAcross, "bridge-across", false, "with --cni bridge: routes to the other clusters too")
	f.StringVar(&cfg.KubeProxy, "kube-proxy", "nftables", "nftables, iptables or none")
	f.BoolVar(&cfg.NoNodeCIDRs, "no-node-cidrs", false, "do not give nodes a pod CIDR")
	f.StringSliceVar(&cfg.Images, "image", nil, "image archives to import on every node")
	f.BoolVar(&cfg.Fresh, "fresh", false, "take down what is there first")
	return cmd
}

func parseClusters(list []string) ([]lab.ClusterConfig, error) {
	var clusters []lab.ClusterConfig
	for _, item := range list {
		name, count, ok := strings.Cut(item, "=")
		nodes, err := strconv.Atoi(count)
		if !ok || err != nil {
			return nil, fmt.Errorf("parse --clusters %q: use NAME=NODES, such as west=2", item)
		}
		clusters = append(clusters, lab.ClusterConfig{Name: name, Nodes: nodes})
	}
	return clusters, nil
}

func (e *env) down() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove everything of a lab, whatever its state",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Down(cmd.Context(), "", e.name)
		},
	}
}

func (e *env) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show clusters and nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := e.open()
			if err != nil {
				return err
			}
			return l.PrintStatus(cmd.Context(), e.out)
		},
	}
}

func (e *env) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec CLUSTER NODE COMMAND...",
		Short: "Run a command on a node",
		Args:  cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := e.open()
			if err != nil {
				return err
			}
			c, err := l.Cluster(args[0])
			if err != nil {
				return err
			}
			n, err := c.Node(args[1])
			if err != nil {
				return err
			}
			e.exitCode, err = n.Attach(cmd.Context(), args[2:]...)
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (e *env) kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig [CLUSTER]",
		Short: "Print the path of the kubeconfig: of all clusters, or of one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := e.open()
			if err != nil {
				return err
			}
			path := l.Kubeconfig()
			if len(args) == 1 {
				c, err := l.Cluster(args[0])
				if err != nil {
					return err
				}
				path = c.Kubeconfig()
			}
			fmt.Fprintln(e.out, path)
			return nil
		},
	}
}

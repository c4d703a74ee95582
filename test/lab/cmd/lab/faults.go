package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/test/lab"
)

// onLab makes a command of a function of the open lab and the arguments.
func (e *env) onLab(use, short string, args int, run func(context.Context, *lab.Lab, []string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ExactArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := e.open()
			if err != nil {
				return err
			}
			return run(cmd.Context(), l, args)
		},
	}
}

// onNode is the same for CLUSTER NODE arguments.
func (e *env) onNode(verb, rest, short string, args int, run func(context.Context, *lab.Node, []string) error) *cobra.Command {
	return e.onLab(verb+" CLUSTER NODE"+rest, short, 2+args, func(ctx context.Context, l *lab.Lab, args []string) error {
		c, err := l.Cluster(args[0])
		if err != nil {
			return err
		}
		n, err := c.Node(args[1])
		if err != nil {
			return err
		}
		return run(ctx, n, args[2:])
	})
}

func (e *env) faults() []*cobra.Command {
	return []*cobra.Command{
		e.onLab("cut A B", "Drop all packets between two nodes or clusters, or one and '*' (everyone)", 2,
			func(ctx context.Context, l *lab.Lab, args []string) error { return l.Cut(ctx, args[0], args[1]) }),
		e.onLab("heal A B", "Undo a cut", 2,
			func(ctx context.Context, l *lab.Lab, args []string) error { return l.Heal(ctx, args[0], args[1]) }),
		e.onNode("stop", "", "Cut a node's power", 0,
			func(ctx context.Context, n *lab.Node, _ []string) error { return n.Stop(ctx) }),
		e.onNode("start", "", "Boot a node, or start what of it was killed", 0,
			func(ctx context.Context, n *lab.Node, _ []string) error { return n.Start(ctx) }),
		e.onNode("kill", " PROGRAM", "Kill a program on a node", 1,
			func(ctx context.Context, n *lab.Node, args []string) error { return n.Kill(ctx, args[0]) }),
		e.onNode("remove-node", "", "Remove a node for good", 0,
			func(ctx context.Context, n *lab.Node, _ []string) error { return n.Cluster().RemoveNode(ctx, n) }),
		e.onLab("add-node CLUSTER", "Add a node", 1, addNode),
		e.onLab("import ARCHIVE", "Import an image archive on every node", 1,
			func(ctx context.Context, l *lab.Lab, args []string) error { return l.Import(ctx, args[0]) }),
	}
}

func addNode(ctx context.Context, l *lab.Lab, args []string) error {
	c, err := l.Cluster(args[0])
	if err != nil {
		return err
	}
	_, err = c.AddNode(ctx)
	return err
}

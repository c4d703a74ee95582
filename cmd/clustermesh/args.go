package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// one takes exactly one argument; use says what it looks like.
func one(what, use string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("%s takes one %s, not %d: %s", cmd.CommandPath(), what, len(args), use)
	}
}

// twoClusters takes none: people write the names of two clusters where flags are
// asked for.
func twoClusters(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return nil
	case 2:
		return fmt.Errorf("%s %s %s: name clusters by the contexts of the kubeconfig: %s --context %s --destination-context %s",
			cmd.CommandPath(), args[0], args[1], cmd.CommandPath(), args[0], args[1])
	}
	return fmt.Errorf("%s takes no arguments, not %q: use --context and --destination-context", cmd.CommandPath(), args)
}

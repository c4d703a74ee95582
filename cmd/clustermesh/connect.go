package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// connectFlags are those of connect.
type connectFlags struct {
	destinations          []string
	destinationKubeconfig string
	sourceEndpoints       []string
	destinationEndpoints  []string
	wait                  bool
	timeout               time.Duration
	dryRun                bool
	output                string
	refresh               bool
	yes                   bool
}

func (f *connectFlags) register(set *pflag.FlagSet) {
	set.StringArrayVar(&f.destinations, "destination-context", nil, "kubeconfig context of the other cluster; may be given several times")
	set.StringVar(&f.destinationKubeconfig, "destination-kubeconfig", "", "kubeconfig file of the other clusters (default that of --kubeconfig)")
	set.StringArrayVar(&f.sourceEndpoints, "source-endpoint", nil, "HOST:PORT at which the others reach this cluster's mesh API, instead of what it tells; may be given several times")
	set.StringArrayVar(&f.destinationEndpoints, "destination-endpoint", nil, "HOST:PORT at which this cluster reaches the other's mesh API, instead of what it tells; may be given several times")
	set.BoolVar(&f.wait, "wait", true, "wait until both sides report that they are connected and synced")
	set.DurationVar(&f.timeout, "timeout", 3*time.Minute, "how long it may take")
	set.BoolVar(&f.dryRun, "dry-run", false, "check everything and print what would be applied, change nothing")
	set.StringVarP(&f.output, "output", "o", "", "with --dry-run: yaml prints the Peer objects")
	set.BoolVar(&f.refresh, "refresh", false, "show how existing Peers differ from what the clusters say now, and apply that after consent")
	set.BoolVarP(&f.yes, "yes", "y", false, "with --refresh: consent without being asked")
}

func (f *connectFlags) check() error {
	switch {
	case len(f.destinations) == 0:
		return errors.New("--destination-context: name the context of the other cluster")
	case len(f.destinations) > 1 && len(f.destinationEndpoints) > 0:
		return errors.New("--destination-endpoint: only with a single --destination-context; connect the clusters one by one")
	case f.output != "" && f.output != "yaml":
		return fmt.Errorf("--output %q: only yaml is known", f.output)
	case f.output != "" && !f.dryRun:
		return errors.New("--output yaml: only together with --dry-run")
	case f.yes && !f.refresh:
		return errors.New("--yes: only together with --refresh")
	case f.timeout <= 0:
		return fmt.Errorf("--timeout %s: must be more than 0, for example 3m", f.timeout)
	}
	for _, endpoint := range f.sourceEndpoints {
		if err := checkEndpoint("--source-endpoint", endpoint); err != nil {
			return err
		}
	}
	for _, endpoint := range f.destinationEndpoints {
		if err := checkEndpoint("--destination-endpoint", endpoint); err != nil {
			return err
		}
	}
	return nil
}

func connectCommand(flags *kubeFlags) *cobra.Command {
	options := &connectFlags{}
	cmd := &cobra.Command{
		Use:   "connect --destination-context CONTEXT",
		Short: "Connect two clusters, so that their pods reach each other",
		Long: `Connect the cluster of --context with that of --destination-context (or with each of several).

Both clusters are looked at first: names, versions, address ranges, and whether each reaches the other's
mesh API. Only if nothing speaks against it, a Peer object is written in each, with the other's CA
certificate, endpoints and pod CIDRs. Private keys never leave their cluster. Running it again is safe.`,
		Example: `  clustermesh connect --context west --destination-context east
  clustermesh connect --context hub --destination-context east --destination-context west
  clustermesh connect --context west --destination-context east --dry-run -o yaml > peers.yaml
  clustermesh connect --context west --destination-context east --refresh`,
		Args: twoClusters,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := options.check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), options.timeout)
			defer cancel()
			source, destinations, err := options.members(flags)
			if err != nil {
				return err
			}
			run := &connecting{options: options, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), show: newProgress(cmd.ErrOrStderr())}
			return run.connect(ctx, source, destinations)
		},
	}
	options.register(cmd.Flags())
	return cmd
}

// members makes the clients of all clusters. A context that is named twice is a slip.
func (f *connectFlags) members(flags *kubeFlags) (*member, []*member, error) {
	source, err := newMember(*flags)
	if err != nil {
		return nil, nil, err
	}
	var destinations []*member
	seen := map[string]bool{}
	for _, name := range f.destinations {
		if seen[name] {
			return nil, nil, fmt.Errorf("--destination-context %q: given twice", name)
		}
		seen[name] = true
		destination, err := destinationMember(*flags, name, f.destinationKubeconfig)
		if err != nil {
			return nil, nil, err
		}
		destinations = append(destinations, destination)
	}
	return source, destinations, nil
}

func destinationMember(flags kubeFlags, name, kubeconfig string) (*member, error) {
	flags.context, flags.contextFlag = name, "--destination-context"
	if kubeconfig != "" {
		flags.kubeconfig = kubeconfig
	}
	return newMember(flags)
}

// refreshCommand is the command line that reviews the link between two contexts.
func refreshCommand(source, destination string) string {
	return strings.Join([]string{"clustermesh connect --context", source, "--destination-context", destination, "--refresh"}, " ")
}

// connecting is one run of connect.
type connecting struct {
	options *connectFlags
	in      io.Reader
	out     io.Writer
	show    *progress
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type disconnectFlags struct {
	destination           string
	destinationKubeconfig string
	wait                  bool
	timeout               time.Duration
}

func disconnectCommand(flags *kubeFlags) *cobra.Command {
	options := &disconnectFlags{}
	cmd := &cobra.Command{
		Use:   "disconnect [PEER]",
		Short: "Disconnect two clusters, or one side alone",
		Long: `Disconnect two clusters: delete the Peer of each in the other, and wait until nothing of it is left.

With PEER and without --destination-context only this side is disconnected. That needs nothing of the
other cluster and stops all traffic between the two; the other side can be disconnected whenever it is back.`,
		Example: `  clustermesh disconnect --context west --destination-context east
  clustermesh disconnect --context west east`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := options.check(args); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), options.timeout)
			defer cancel()
			run := &disconnecting{options: options, out: cmd.OutOrStdout(), show: newProgress(cmd.ErrOrStderr())}
			if options.destination == "" {
				return run.oneSide(ctx, flags, args[0])
			}
			return run.bothSides(ctx, flags, args)
		},
	}
	cmd.Flags().StringVar(&options.destination, "destination-context", "", "kubeconfig context of the other cluster")
	cmd.Flags().StringVar(&options.destinationKubeconfig, "destination-kubeconfig", "", "kubeconfig file of the other cluster (default that of --kubeconfig)")
	cmd.Flags().BoolVar(&options.wait, "wait", true, "wait until the other cluster's rows and routes are gone")
	cmd.Flags().DurationVar(&options.timeout, "timeout", 2*time.Minute, "how long it may take")
	return cmd
}

func (f *disconnectFlags) check(args []string) error {
	if f.destination == "" && len(args) == 0 {
		return errors.New("name the other cluster: PEER disconnects this side alone, --destination-context CONTEXT both; `clustermesh peers` lists them")
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be more than 0, for example 2m", f.timeout)
	}
	return nil
}

// disconnecting is one run of disconnect.
type disconnecting struct {
	options *disconnectFlags
	out     io.Writer
	show    *progress
}

func (d *disconnecting) oneSide(ctx context.Context, flags *kubeFlags, peer string) error {
	m, err := newMember(*flags)
	if err != nil {
		return err
	}
	name, err := clusterName(ctx, m)
	if err != nil {
		return err
	}
	if err := d.remove(ctx, m, name, peer); err != nil {
		return err
	}
	_, err = fmt.Fprintf(d.out, "Cluster %s no longer takes anything from %s and gives it nothing.\n"+
		"If %s still has a Peer named %s, finish there: clustermesh disconnect --context CONTEXT-OF-%s %s\n",
		name, peer, peer, name, strings.ToUpper(peer), name)
	return err
}

// bothSides disconnects this side even if the other can't be reached, provided that its name is known.
func (d *disconnecting) bothSides(ctx context.Context, flags *kubeFlags, args []string) error {
	source, err := newMember(*flags)
	if err != nil {
		return err
	}
	destination, err := destinationMember(*flags, d.options.destination, d.options.destinationKubeconfig)
	if err != nil {
		return err
	}
	ours, err := clusterName(ctx, source)
	if err != nil {
		return err
	}
	theirs, otherErr := clusterName(ctx, destination)
	switch {
	case otherErr == nil && len(args) == 1 && args[0] != theirs:
		return fmt.Errorf("context %s is cluster %q, not %q: give PEER or --destination-context, or two that agree", destination.context, theirs, args[0])
	case otherErr != nil && len(args) == 0:
		return fmt.Errorf("%w\nNothing was changed, since the name of that cluster is not known. Disconnect this side alone: clustermesh disconnect --context %s %s",
			otherErr, source.context, peerChoice(ctx, source))
	case otherErr != nil:
		theirs = args[0]
	}
	first := d.remove(ctx, source, ours, theirs)
	second := otherErr
	if otherErr == nil {
		second = d.remove(ctx, destination, theirs, ours)
	}
	return d.finish(sideResult{source.context, ours, first}, sideResult{destination.context, theirs, second})
}

// sideResult is how one side ended.
type sideResult struct {
	context, cluster string
	err              error
}

// finish tells what is left to do, with the command that does it.
func (d *disconnecting) finish(a, b sideResult) error {
	var gone notConnected
	aGone, bGone := errors.As(a.err, &gone), errors.As(b.err, &gone)
	switch {
	case aGone && bGone:
		_, err := fmt.Fprintf(d.out, "Clusters %s and %s were not connected.\n", a.cluster, b.cluster)
		return err
	case (a.err == nil || aGone) && (b.err == nil || bGone):
		_, err := fmt.Fprintf(d.out, "Clusters %s and %s are disconnected, nothing is left on either side.\n", a.cluster, b.cluster)
		return err
	}
	var errs []error
	for _, side := range [][2]sideResult{{a, b}, {b, a}} {
		if err := side[0].err; err != nil && !errors.As(err, &gone) {
			errs = append(errs, fmt.Errorf("%w\nFinish that side later: clustermesh disconnect --context %s %s", err, side[0].context, side[1].cluster))
		}
	}
	return errors.Join(errs...)
}

// clusterName asks a cluster for its name in the mesh.
func clusterName(ctx context.Context, m *member) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	parsed, err := meshConfig(ctx, m)
	if err != nil {
		return "", fmt.Errorf("context %s: %w", m.context, err)
	}
	return parsed.Cluster.Name, nil
}

// peerChoice is what a user may put for PEER: its name if there is one only.
func peerChoice(ctx context.Context, m *member) string {
	peers, err := listPeers(ctx, m)
	if err != nil || len(peers) == 0 {
		return "PEER"
	}
	names := make([]string, len(peers))
	for i, peer := range peers {
		names[i] = peer.Name
	}
	return strings.Join(names, "|")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

func troubleshootCommand(flags *kubeFlags) *cobra.Command {
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:   "troubleshoot PEER",
		Short: "Find out step by step why a peer is not reachable",
		Long: `Try every endpoint of a peer from the pod that dials it, step by step: DNS, TCP, TLS, the server's
certificate, whether the peer lets us read, and whether its heartbeat beats. The first step that fails
says where to look. The exit code is 0 if at least one endpoint passes every step.`,
		Example: "  clustermesh troubleshoot --context west east",
		Args:    one("peer", "the name of a connected cluster; `clustermesh peers` lists them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout %s: must be more than 0, for example 1m", timeout)
			}
			m, err := newMember(*flags)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return troubleshoot(ctx, m, args[0], cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long it may take")
	return cmd
}

func troubleshoot(ctx context.Context, m *member, name string, out io.Writer) error {
	peers, err := listPeers(ctx, m)
	if err != nil {
		return fmt.Errorf("context %s: %w", m.context, err)
	}
	peer := existingPeer(peers, name)
	if peer == nil {
		return notConnected{m.context, name, peerNames(peers)}
	}
	if _, err := readyAPIServer(ctx, m); err != nil {
		return fmt.Errorf("context %s: %w", m.context, err)
	}
	endpoints := candidates(*peer)
	if len(endpoints) == 0 {
		return fmt.Errorf("peer %s: spec.endpoints is empty and it has announced none; add HOST:PORT there, or run `clustermesh connect --refresh --destination-context CONTEXT`", name)
	}
	probes := probe(ctx, m, probeTarget{peer.Name, peer.Spec.Trust.CABundle}, endpoints)
	if _, err := io.WriteString(out, renderProbes(m.context, *peer, probes).render(colourful(out))); err != nil {
		return err
	}
	if !slices.ContainsFunc(probes, passed) {
		return errors.New("no endpoint of the peer passes every step")
	}
	return nil
}

// candidates are the endpoints that the API server tries: those of the spec, then those that the peer announces.
func candidates(peer v1alpha1.Peer) []string {
	all := slices.Clone(peer.Spec.Endpoints)
	if peer.Status.Announced != nil {
		for _, endpoint := range peer.Status.Announced.Endpoints {
			if !slices.Contains(all, endpoint) {
				all = append(all, endpoint)
			}
		}
	}
	return all
}

func passed(p status.Probe) bool {
	return p.Reachable && !slices.ContainsFunc(p.Steps, func(s status.ProbeStep) bool { return !s.OK })
}

func renderProbes(context string, peer v1alpha1.Peer, probes []status.Probe) *text {
	t := &text{}
	t.line(plain(fmt.Sprintf("Peer %s, as the mesh API server of context %s reaches it:", peer.Name, context)))
	if why := linkWait(&peer); why != "" {
		t.line(cell{"  ! the Peer object says: " + printable(why), status.Degraded})
	}
	for _, p := range probes {
		t.line()
		t.line(plain("  " + p.Endpoint))
		t.table(probeRows(peer, p))
	}
	return t
}

func probeRows(peer v1alpha1.Peer, p status.Probe) [][]cell {
	var rows [][]cell
	failed := false
	for _, step := range p.Steps {
		if step.OK {
			rows = append(rows, []cell{plain("    " + step.Name), {"ok", status.OK}, plain(printable(step.Detail))})
			continue
		}
		failed = true
		rows = append(rows, []cell{plain("    " + step.Name), {"failed", status.Down}, plain(printable(step.Error))},
			[]cell{plain(""), plain(""), plain("→ " + advice(peer, step.Name))})
	}
	if p.Error != "" && !failed {
		rows = append(rows, full(status.Down, "    "+printable(p.Error)))
	}
	return rows
}

// advice is what to do about the step that failed.
func advice(peer v1alpha1.Peer, step string) string {
	switch step {
	case status.ProbeDNS:
		return "check the name, and the resolver of the node that the mesh API server runs on"
	case status.ProbeTCP:
		return "check that the peer's mesh API server runs, and that routes and firewalls let this cluster's nodes through to its port"
	case status.ProbeTLS:
		return "something answers that is not a mesh API: check the address and what stands before it"
	case status.ProbeCertificate:
		return fmt.Sprintf("it is not %s, or its CA is another one now: run `clustermesh connect --refresh --destination-context CONTEXT` between the two contexts", peer.Name)
	case status.ProbeAuthorisation:
		return "the peer does not know us: check that it has a Peer named after this cluster with our CA, or run `clustermesh connect --refresh --destination-context CONTEXT`"
	case status.ProbeHeartbeat:
		return "the peer's mesh API server answers but does not write: see its logs there, and `clustermesh status`"
	}
	return "see the logs of the mesh API servers on both sides"
}

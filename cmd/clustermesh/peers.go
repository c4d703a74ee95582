package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/status"
)

func peersCommand(flags *kubeFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "peers",
		Short: "List the clusters that this one is connected to",
		Long:  "List the Peer objects of a cluster. `clustermesh status` says more, and asks the pods themselves.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := newMember(*flags)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), gatherTimeout)
			defer cancel()
			peers, err := listPeers(ctx, m)
			if err != nil {
				return fmt.Errorf("context %s: %w", m.context, err)
			}
			out := cmd.OutOrStdout()
			_, err = io.WriteString(out, renderPeerList(m.context, peers, time.Now()).render(colourful(out)))
			return err
		},
	}
}

func renderPeerList(context string, peers []v1alpha1.Peer, now time.Time) *text {
	t := &text{}
	if len(peers) == 0 {
		t.line(plain(fmt.Sprintf("No peers in context %s. Connect one with `clustermesh connect`.", context)))
		return t
	}
	rows := [][]cell{plains("PEER", "CONNECTED", "SYNCED", "NODES", "POD CIDRS", "ENDPOINT", "AGE")}
	for _, p := range peers {
		rows = append(rows, []cell{plain(p.Name), conditionCell(p, v1alpha1.ConditionConnected), conditionCell(p, v1alpha1.ConditionSynced),
			plain(fmt.Sprint(p.Status.Nodes)), plain(strings.Join(p.Spec.Import.PodCIDRs, ",")),
			plain(printable(cmp.Or(p.Status.Endpoint, "-"))), plain(short(now.Sub(p.CreationTimestamp.Time)))})
	}
	t.table(rows)
	return t
}

func conditionCell(peer v1alpha1.Peer, kind string) cell {
	condition := meta.FindStatusCondition(peer.Status.Conditions, kind)
	switch {
	case condition == nil:
		return cell{"unknown", status.Degraded}
	case condition.Status == "True":
		return cell{"yes", status.OK}
	}
	return cell{"no", status.Down}
}

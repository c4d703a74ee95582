package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// errDegraded makes the exit code 1 where the report itself says what is wrong.
var errDegraded = errors.New("not everything is well: lines marked ! say what")

type statusFlags struct {
	contexts []string
	output   string
	wait     bool
	timeout  time.Duration
	all      bool
}

func (f *statusFlags) check() error {
	if f.output != "" && f.output != "json" {
		return fmt.Errorf("--output %q: only json is known", f.output)
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be more than 0, for example 5m", f.timeout)
	}
	return nil
}

func statusCommand(flags *kubeFlags) *cobra.Command {
	options := &statusFlags{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how clustermesh, its links and its nodes are",
		Long: `Show the mesh API servers, the links to peers and the agent of every node, the worst first.

The exit code is 0 if all is well, 1 if anything is degraded or could not be asked.`,
		Example: `  clustermesh status
  clustermesh status --context west --context east
  clustermesh status --wait --timeout 2m
  clustermesh status -o json | jq '.clusters[].peers'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := options.check(); err != nil {
				return err
			}
			members, err := options.members(flags)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), options.timeout)
			defer cancel()
			return options.run(ctx, members, cmd.OutOrStdout(), newProgress(cmd.ErrOrStderr()))
		},
	}
	// It takes the place of the flag that all verbs share, so that it can be repeated.
	cmd.Flags().StringArrayVar(&options.contexts, "context", nil, "kubeconfig context of a cluster; may be given several times (default the current one)")
	cmd.Flags().StringVarP(&options.output, "output", "o", "", "json prints everything for programs")
	cmd.Flags().BoolVar(&options.wait, "wait", false, "wait until all is well")
	cmd.Flags().DurationVar(&options.timeout, "timeout", 5*time.Minute, "how long it may take")
	cmd.Flags().BoolVar(&options.all, "all-nodes", false, "list all nodes, however many are well")
	return cmd
}

func (f *statusFlags) members(flags *kubeFlags) ([]*member, error) {
	contexts := f.contexts
	if len(contexts) == 0 {
		contexts = []string{""}
	}
	var members []*member
	for _, name := range contexts {
		one := *flags
		one.context = name
		m, err := newMember(one)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, nil
}

func (f *statusFlags) run(ctx context.Context, members []*member, out io.Writer, show *progress) error {
	report := meshStatus(ctx, members)
	if f.wait && report.Level != status.OK {
		err := show.poll(ctx, func(ctx context.Context) (bool, string, error) {
			if next := meshStatus(ctx, members); ctx.Err() == nil {
				report = next // one that was cut short says nothing
			}
			return report.Level == status.OK, "all to be well: " + firstTrouble(report), nil
		})
		if err != nil {
			return errors.Join(f.print(out, report), err)
		}
	}
	if err := f.print(out, report); err != nil {
		return err
	}
	if report.Level != status.OK {
		return errDegraded
	}
	return nil
}

// meshStatus asks all clusters at the same time.
func meshStatus(ctx context.Context, members []*member) meshReport {
	report := meshReport{Clusters: make([]clusterReport, len(members))}
	var group errgroup.Group
	for i, m := range members {
		group.Go(func() error {
			report.Clusters[i] = judge(observe(ctx, m))
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	levels := make([]status.Level, len(members))
	for i, cluster := range report.Clusters {
		levels[i] = cluster.Level
	}
	report.Level = worstOf(levels)
	return report
}

func (f *statusFlags) print(out io.Writer, report meshReport) error {
	if f.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	text := renderStatus(report, time.Now(), f.all)
	_, err := io.WriteString(out, text.render(colourful(out)))
	return err
}

// colourful tells whether out is a terminal whose user has nothing against colours (https://no-color.org).
func colourful(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(file.Fd()))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"helm.sh/helm/v4/pkg/action"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/version"
)

// rollbackTime is what undoing a failed install may take, even if the user's own time is up.
const rollbackTime = 30 * time.Second

// deployFlags are common to install and upgrade.
type deployFlags struct {
	values  valueFlags
	wait    bool
	timeout time.Duration
	dryRun  bool
	output  string
}

func (f *deployFlags) register(set *pflag.FlagSet) {
	f.values.register(set)
	set.BoolVar(&f.wait, "wait", true, "wait until all pods of clustermesh are ready")
	set.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
	set.BoolVar(&f.dryRun, "dry-run", false, "check everything and print what would be applied, change nothing")
	set.StringVarP(&f.output, "output", "o", "", "with --dry-run: yaml prints the manifests")
}

func (f *deployFlags) check() error {
	if f.output != "" && f.output != "yaml" {
		return fmt.Errorf("--output %q: only yaml is known", f.output)
	}
	if f.output != "" && !f.dryRun {
		return errors.New("--output yaml: only together with --dry-run")
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be more than 0, for example 5m", f.timeout)
	}
	return nil
}

func installCommand(flags *kubeFlags) *cobra.Command {
	deploy := &deployFlags{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install clustermesh as the network of a cluster",
		Long: `Install clustermesh in the cluster of the current context (or --context).

What the chart needs to know of the cluster is read from it: the name of the context, the address of
the API server, the pod and service CIDRs. Everything can be given with --set, -f and the flags instead.
All values are checked before anything is changed.`,
		Example: `  clustermesh install --context east
  clustermesh install --cluster-name east --set cluster.podCIDRs={10.1.0.0/16,fd00:10:1::/48}
  clustermesh install --dry-run -o yaml > clustermesh.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := deploy.check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), deploy.timeout)
			defer cancel()
			return install(ctx, flags, deploy, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	deploy.register(cmd.Flags())
	return cmd
}

func install(ctx context.Context, flags *kubeFlags, deploy *deployFlags, out, errOut io.Writer) error {
	user, err := deploy.values.read()
	if err != nil {
		return err
	}
	cluster, err := flags.connect()
	if err != nil {
		return err
	}
	config, err := helmConfig(cluster)
	if err != nil {
		return err
	}
	show := newProgress(errOut)
	if err := reachable(ctx, cluster); err != nil {
		return err
	}
	if err := notInstalled(config, cluster); err != nil {
		return err
	}
	values, err := completed(ctx, cluster, user, func(f finding) { show.step("found %s", f) })
	if err != nil {
		return err
	}
	run, err := newDeployment(cluster, config, values)
	if err != nil {
		return err
	}
	run.timeout = deploy.timeout
	if err := checkCluster(ctx, cluster, run.settings, func(warning string) { show.step("%s", warning) }); err != nil {
		return err
	}
	rendered, err := run.install(ctx, true)
	if err != nil {
		return err
	}
	if deploy.dryRun {
		return run.print(out, rendered, deploy.output)
	}
	return applyInstall(ctx, run, deploy.wait, show, out)
}

// applyInstall is the part that changes the cluster.
func applyInstall(ctx context.Context, run *deployment, wait bool, show *progress, out io.Writer) error {
	made, err := ensureNamespace(ctx, run.cluster, show)
	if err != nil {
		return err
	}
	if _, err := run.install(ctx, false); err != nil {
		return errors.Join(err, undoInstall(ctx, run, made))
	}
	show.step("applied clustermesh %s in namespace %s", version.Version, run.cluster.namespace)
	if wait {
		if err := waitReady(ctx, run.cluster, show); err != nil {
			return fmt.Errorf("clustermesh is installed, but not ready: %w", err)
		}
	}
	fmt.Fprintf(out, "clustermesh %s is installed in cluster %q. Connect it to another one with `clustermesh connect`.\n",
		version.Version, run.settings.Cluster.Name)
	return nil
}

// undoInstall removes what a failed install left, whether or not the user's time is up.
func undoInstall(ctx context.Context, run *deployment, namespaceMade bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
	defer cancel()
	if err := helmUninstall(run.config, rollbackTime); err != nil {
		return fmt.Errorf("undo the failed install: %w; run `clustermesh uninstall`", err)
	}
	if !namespaceMade {
		return nil
	}
	return deleteNamespace(ctx, run.cluster)
}

// reachable asks the API server for its version: the first thing that can fail, with what to look at.
func reachable(ctx context.Context, cluster *kubeCluster) error {
	if _, err := cluster.typed.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{}); err != nil {
		return fmt.Errorf("reach Kubernetes at %s (context %q): %w; check the server, the credentials and --context", cluster.config.Host, cluster.context, err)
	}
	return nil
}

func notInstalled(config *action.Configuration, cluster *kubeCluster) error {
	last, err := lastRelease(config)
	if err != nil || last == nil {
		return err
	}
	if last.Info.Status == "deployed" {
		return fmt.Errorf("clustermesh %s is installed already in namespace %s; use `clustermesh upgrade`", last.Chart.AppVersion(), cluster.namespace)
	}
	return fmt.Errorf("an earlier install in namespace %s is left in state %q; run `clustermesh uninstall`, then install again", cluster.namespace, last.Info.Status)
}

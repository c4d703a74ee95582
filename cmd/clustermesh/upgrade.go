package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"

	"github.com/clustermesh/clustermesh/pkg/version"
)

func upgradeCommand(flags *kubeFlags) *cobra.Command {
	deploy, reuse := &deployFlags{}, true
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade clustermesh to the version of this program, or change its values",
		Long: `Upgrade clustermesh in a cluster to the version of this program.

The values given at install and at earlier upgrades are kept, the chart's new defaults fill the rest,
and --set, -f and the flags change single ones. Traffic goes on while the pods are replaced.`,
		Example: `  clustermesh upgrade --context east
  clustermesh upgrade --set pods.apiserver.replicas=2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := deploy.check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), deploy.timeout)
			defer cancel()
			run, err := prepareUpgrade(ctx, flags, deploy, reuse)
			if err != nil {
				return err
			}
			return upgrade(ctx, run, deploy, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	deploy.register(cmd.Flags())
	cmd.Flags().BoolVar(&reuse, "reuse-values", true, "keep the values given earlier; false starts from the chart's defaults")
	return cmd
}

// prepareUpgrade checks everything; it changes nothing.
func prepareUpgrade(ctx context.Context, flags *kubeFlags, deploy *deployFlags, reuse bool) (*deployment, error) {
	user, err := deploy.values.read()
	if err != nil {
		return nil, err
	}
	cluster, err := flags.connect()
	if err != nil {
		return nil, err
	}
	config, err := helmConfig(cluster)
	if err != nil {
		return nil, err
	}
	if err := reachable(ctx, cluster); err != nil {
		return nil, err
	}
	last, err := installedRelease(config, cluster)
	if err != nil {
		return nil, err
	}
	if reuse {
		user = loader.MergeMaps(last.Config, user)
	}
	values, err := completed(ctx, cluster, user, func(finding) {})
	if err != nil {
		return nil, err
	}
	if err := sameClusterName(last, values); err != nil {
		return nil, err
	}
	run, err := newDeployment(cluster, config, values)
	if err != nil {
		return nil, err
	}
	run.timeout = deploy.timeout
	return run, nil
}

func upgrade(ctx context.Context, run *deployment, deploy *deployFlags, out, errOut io.Writer) error {
	show := newProgress(errOut)
	if err := checkCluster(ctx, run.cluster, run.settings, func(warning string) { show.step("%s", warning) }); err != nil {
		return err
	}
	rendered, err := run.upgrade(ctx, true)
	if err != nil {
		return err
	}
	if err := rehearseManifests(ctx, run.cluster, rendered.Manifest); err != nil {
		return fmt.Errorf("the upgrade would fail, nothing was changed: %w", err)
	}
	if deploy.dryRun {
		return run.print(out, rendered, deploy.output)
	}
	if tag, pinned := lookup(run.values, "image", "tag"); pinned && tag != version.Version && deploy.values.image == "" {
		show.step("the image stays at tag %v, which was given earlier; --image changes it", tag)
	}
	if _, err := run.upgrade(ctx, false); err != nil {
		return err
	}
	show.step("applied clustermesh %s in namespace %s", version.Version, run.cluster.namespace)
	if deploy.wait {
		if err := waitReady(ctx, run.cluster, show); err != nil {
			return fmt.Errorf("clustermesh is upgraded, but not ready: %w", err)
		}
	}
	_, err = fmt.Fprintf(out, "clustermesh %s runs in cluster %q.\n", version.Version, run.settings.Cluster.Name)
	return err
}

func installedRelease(config *action.Configuration, cluster *kubeCluster) (*release.Release, error) {
	last, err := lastRelease(config)
	switch {
	case err != nil:
		return nil, err
	case last == nil:
		return nil, fmt.Errorf("clustermesh is not installed in namespace %s; use `clustermesh install`, or name its namespace with --namespace", cluster.namespace)
	case last.Info.Status.IsPending():
		return nil, fmt.Errorf("an earlier run is left in state %q (revision %d); if it is not running any more, delete its record with "+
			"`kubectl -n %s delete secret sh.helm.release.v1.%s.v%d` and try again",
			last.Info.Status, last.Version, cluster.namespace, releaseName, last.Version)
	}
	return last, nil
}

// sameClusterName refuses to rename a cluster: its peers know it by its name, and its certificates carry it.
func sameClusterName(last *release.Release, values map[string]any) error {
	before, known := lookup(last.Config, "cluster", "name")
	after, _ := lookup(values, "cluster", "name")
	if known && before != after {
		return fmt.Errorf("cluster.name: %v can't be changed to %v while clustermesh is installed, since peers know the cluster by its name; "+
			"disconnect, uninstall and install again", before, after)
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"sigs.k8s.io/yaml"

	meshconfig "github.com/clustermesh/clustermesh/pkg/config"
)

const applyTime = 2 * time.Minute

// deployment is the chart with the values to install or upgrade it with on one cluster. Its values have been checked.
type deployment struct {
	cluster *kubeCluster
	config  *action.Configuration
	chart   *chart.Chart
	values  map[string]any // what the user and the cluster said; Helm records them
	timeout time.Duration

	settings meshconfig.Config // what the agents and the API server will read
}

// newDeployment checks all values, so that nothing is half-applied because of one of them.
func newDeployment(cluster *kubeCluster, config *action.Configuration, values map[string]any) (*deployment, error) {
	loaded, err := loadChart()
	if err != nil {
		return nil, err
	}
	checked, err := checkedValues(loaded, values)
	if err != nil {
		return nil, err
	}
	return &deployment{cluster: cluster, config: config, chart: loaded, values: values, settings: checked}, nil
}

// checkedValues merges values over the chart's defaults and checks the result: its form by the schema, its meaning as
// the agents and the API server will.
func checkedValues(loaded *chart.Chart, values map[string]any) (meshconfig.Config, error) {
	merged, err := util.CoalesceValues(loaded, values)
	if err != nil {
		return meshconfig.Config{}, fmt.Errorf("merge values with the chart's defaults: %w", err)
	}
	if err := checkSchema(loaded, merged); err != nil {
		return meshconfig.Config{}, fmt.Errorf("values are not valid, nothing was changed:\n%w", err)
	}
	checked, err := checkConfig(merged)
	if err != nil {
		return meshconfig.Config{}, fmt.Errorf("values are not valid, nothing was changed:\n%w", err)
	}
	return checked, nil
}

// install runs Helm's install; a dry run renders and checks for conflicts with what is in the cluster.
func (d *deployment) install(ctx context.Context, dryRun bool) (*release.Release, error) {
	run := action.NewInstall(d.config)
	run.ReleaseName, run.Namespace = releaseName, d.cluster.namespace
	run.WaitStrategy, run.Timeout = kube.HookOnlyStrategy, d.timeout
	run.ServerSideApply = true
	run.DryRunStrategy = dryRunStrategy(dryRun)
	ctx, cancel := applyContext(ctx)
	defer cancel()
	result, err := run.RunWithContext(ctx, d.chart, d.values)
	if err != nil {
		return nil, fmt.Errorf("install chart in namespace %s: %w", d.cluster.namespace, err)
	}
	return asRelease(result)
}

// upgrade runs Helm's upgrade. The values are complete, so what Helm recorded earlier does not count.
func (d *deployment) upgrade(ctx context.Context, dryRun bool) (*release.Release, error) {
	run := action.NewUpgrade(d.config)
	run.Namespace, run.ResetValues = d.cluster.namespace, true
	run.WaitStrategy, run.Timeout = kube.HookOnlyStrategy, d.timeout
	// The chart owns its objects: an earlier edit by hand must not stop an upgrade half-way.
	run.ServerSideApply, run.ForceConflicts = "true", true
	run.MaxHistory = 10
	run.DryRunStrategy = dryRunStrategy(dryRun)
	ctx, cancel := applyContext(ctx)
	defer cancel()
	result, err := run.RunWithContext(ctx, releaseName, d.chart, d.values)
	if err != nil {
		return nil, fmt.Errorf("upgrade chart in namespace %s: %w", d.cluster.namespace, err)
	}
	return asRelease(result)
}

// applyContext does not end with the user's time or patience: Helm goes on applying in the background when its context
// ends, and would race with the undoing. It takes seconds unless the API server hangs.
func applyContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), applyTime)
}

// helmUninstall removes what the chart made; it is no error if that has happened already.
func helmUninstall(config *action.Configuration, timeout time.Duration) error {
	run := action.NewUninstall(config)
	run.IgnoreNotFound = true
	run.WaitStrategy, run.Timeout = kube.HookOnlyStrategy, timeout
	run.DeletionPropagation = "background"
	if _, err := run.Run(releaseName); err != nil {
		return fmt.Errorf("uninstall chart: %w", err)
	}
	return nil
}

func dryRunStrategy(dryRun bool) action.DryRunStrategy {
	if dryRun {
		return action.DryRunServer
	}
	return action.DryRunNone
}

// print writes what a dry run found: the manifests, or one line per object.
func (d *deployment) print(out io.Writer, rendered *release.Release, format string) error {
	manifests, err := d.manifests(rendered)
	if err != nil {
		return err
	}
	if format == "yaml" {
		_, err := io.WriteString(out, manifests)
		return err
	}
	fmt.Fprintln(out, "Would apply (see the manifests with -o yaml):")
	for _, document := range splitManifests(manifests) {
		var object struct {
			Kind     string                `json:"kind"`
			Metadata struct{ Name string } `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			return fmt.Errorf("parse rendered manifest: %w", err)
		}
		fmt.Fprintf(out, "  %s %s\n", object.Kind, object.Metadata.Name)
	}
	return nil
}

// manifests is what `kubectl apply` takes: the namespace and the chart's objects.
func (d *deployment) manifests(rendered *release.Release) (string, error) {
	namespace := meshNamespace(d.cluster.namespace)
	namespace.Kind, namespace.APIVersion = "Namespace", "v1"
	document, err := yaml.Marshal(namespace)
	if err != nil {
		return "", fmt.Errorf("encode namespace %s: %w", d.cluster.namespace, err)
	}
	return "---\n" + string(document) + strings.TrimSpace(rendered.Manifest) + "\n", nil
}

func splitManifests(manifests string) []string {
	return strings.Split(strings.TrimPrefix(manifests, "---\n"), "\n---\n")
}

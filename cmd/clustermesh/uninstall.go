package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/action"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
)

type uninstallFlags struct {
	force   bool
	timeout time.Duration
}

func uninstallCommand(flags *kubeFlags) *cobra.Command {
	options := &uninstallFlags{}
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove clustermesh from a cluster, and everything it made on the nodes",
		Long: `Remove clustermesh from a cluster.

Every node is cleaned first: devices, routes, rules, nftables tables, files and the CNI configuration go.
Pods on the pod network lose it. Then the objects in Kubernetes are removed. An interrupted uninstall can be run again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.timeout <= 0 {
				return fmt.Errorf("--timeout %s: must be more than 0, for example 5m", options.timeout)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), options.timeout)
			defer cancel()
			return uninstall(ctx, flags, options, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&options.force, "force", false, "uninstall although peers are connected, and skip nodes that do not report")
	cmd.Flags().DurationVar(&options.timeout, "timeout", 5*time.Minute, "how long it may take")
	return cmd
}

func uninstall(ctx context.Context, flags *kubeFlags, options *uninstallFlags, out, errOut io.Writer) error {
	cluster, err := flags.connect()
	if err != nil {
		return err
	}
	config, err := helmConfig(cluster)
	if err != nil {
		return err
	}
	if err := reachable(ctx, cluster); err != nil {
		return err
	}
	if err := disconnected(ctx, cluster, options.force); err != nil {
		return err
	}
	if err := somethingInstalled(ctx, config, cluster); err != nil {
		return err
	}
	show := newProgress(errOut)
	if err := removeEverything(ctx, cluster, config, options, show); err != nil {
		return fmt.Errorf("%w; `clustermesh uninstall` can be run again", err)
	}
	_, err = fmt.Fprintf(out, "clustermesh is removed from context %q.\n", cluster.context)
	return err
}

// removeEverything goes from what depends to what is depended on: the API server would make its secrets again, and the
// agents need their rights to say that their node is clean.
func removeEverything(ctx context.Context, cluster *kubeCluster, config *action.Configuration, options *uninstallFlags, show *progress) error {
	if err := stopAPIServer(ctx, cluster, options.force, show); err != nil {
		return err
	}
	if err := cleanNodes(ctx, cluster, options.force, show); err != nil {
		return err
	}
	if err := releasePeers(ctx, cluster); err != nil {
		return err
	}
	remaining := time.Minute
	if deadline, ok := ctx.Deadline(); ok {
		remaining = time.Until(deadline)
	}
	if err := helmUninstall(config, remaining); err != nil {
		return err
	}
	if err := waitNoPods(ctx, cluster, "app.kubernetes.io/name=clustermesh", options.force, show); err != nil {
		return err
	}
	show.step("removed the chart's objects")
	if err := deleteLeftovers(ctx, cluster); err != nil {
		return err
	}
	if err := deleteNamespace(ctx, cluster); err != nil {
		return err
	}
	return waitNoNamespace(ctx, cluster, show)
}

// disconnected refuses while there are Peers: their clusters still count on this one, and the user should know.
func disconnected(ctx context.Context, cluster *kubeCluster, force bool) error {
	peers, err := cluster.dynamic.Resource(v1alpha1.Peers).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || force && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list peers: %w", err)
	}
	if len(peers.Items) == 0 {
		return nil
	}
	var names []string
	for _, peer := range peers.Items {
		names = append(names, peer.GetName())
	}
	return fmt.Errorf("connected to %s; disconnect first with `clustermesh disconnect`, or give --force", strings.Join(names, ", "))
}

// somethingInstalled finds what an interrupted uninstall may have left, too.
func somethingInstalled(ctx context.Context, config *action.Configuration, cluster *kubeCluster) error {
	last, err := lastRelease(config)
	if err != nil || last != nil {
		return err
	}
	_, err = cluster.typed.CoreV1().Secrets(cluster.namespace).Get(ctx, secretNames()[0], metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("clustermesh is not installed in namespace %s; name its namespace with --namespace", cluster.namespace)
	}
	return err
}

// releasePeers takes the finalizers off the Peers: the API server that would answer them is gone.
func releasePeers(ctx context.Context, cluster *kubeCluster) error {
	client := cluster.dynamic.Resource(v1alpha1.Peers)
	peers, err := client.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list peers: %w", err)
	}
	for _, peer := range peers.Items {
		err := client.Delete(ctx, peer.GetName(), metav1.DeleteOptions{})
		if err == nil && len(peer.GetFinalizers()) > 0 {
			_, err = client.Patch(ctx, peer.GetName(), mergePatch, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{FieldManager: fieldManager})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete peer %s: %w", peer.GetName(), err)
		}
	}
	return nil
}

// secretNames are those that the API server makes; the chart does not know them.
func secretNames() []string {
	return []string{kube.SecretCA, kube.SecretAgent, kube.SecretPeer}
}

// deleteImports deletes the ServiceImports that the API server has written.
// Kubernetes then deletes what they own.
func deleteImports(ctx context.Context, cluster *kubeCluster) error {
	imports := cluster.dynamic.Resource(kube.ServiceImports)
	list, err := imports.List(ctx, metav1.ListOptions{LabelSelector: kube.ManagedByUs})
	if apierrors.IsNotFound(err) {
		return nil // the cluster does not know the API
	}
	if err != nil {
		return fmt.Errorf("list ServiceImports: %w", err)
	}
	for _, i := range list.Items {
		err := imports.Namespace(i.GetNamespace()).Delete(ctx, i.GetName(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete ServiceImport %s/%s: %w", i.GetNamespace(), i.GetName(), err)
		}
	}
	return nil
}

func deleteLeftovers(ctx context.Context, cluster *kubeCluster) error {
	var errs []error
	for _, name := range secretNames() {
		err := cluster.typed.CoreV1().Secrets(cluster.namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete secret %s: %w", name, err))
		}
	}
	if err := deleteImports(ctx, cluster); err != nil {
		errs = append(errs, err)
	}
	err := cluster.typed.CoordinationV1().Leases(cluster.namespace).Delete(ctx, apiserverName, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("delete lease %s: %w", apiserverName, err))
	}
	return errors.Join(errs...)
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/clustermesh/clustermesh/charts"
	"github.com/clustermesh/clustermesh/pkg/version"
)

const (
	releaseName = "clustermesh"
	helmDriver  = "secret"
)

// loadChart reads the embedded chart and gives it the version of this program.
func loadChart() (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(charts.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := charts.Files.ReadFile(path)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(path, "clustermesh/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read embedded chart: %w", err)
	}
	loaded, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load embedded chart: %w", err)
	}
	loaded.Metadata.Version, loaded.Metadata.AppVersion = version.Version, version.Version
	return loaded, nil
}

// helmConfig makes what Helm's actions need to work on the cluster. Helm logs nothing: its errors are returned, and
// the verbs print their own progress.
func helmConfig(cluster *kubeCluster) (*action.Configuration, error) {
	discovered, err := discovery.NewDiscoveryClientForConfig(cluster.config)
	if err != nil {
		return nil, fmt.Errorf("make discovery client of context %q: %w", cluster.context, err)
	}
	getter := &helmClients{cluster: cluster, discovery: memory.NewMemCacheClient(discovered)}
	// Helm would take the name that the program was called by, and then not know its own fields under another one.
	kube.ManagedFieldsManager = fieldManager
	config := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := config.Init(getter, cluster.namespace, helmDriver); err != nil {
		return nil, fmt.Errorf("prepare Helm for context %q: %w", cluster.context, err)
	}
	return config, nil
}

// lastRelease is the newest revision that Helm recorded, nil if clustermesh is not installed.
func lastRelease(config *action.Configuration) (*release.Release, error) {
	last, err := config.Releases.Last(releaseName)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Helm release %s: %w", releaseName, err)
	}
	return asRelease(last)
}

func asRelease(result any) (*release.Release, error) {
	found, ok := result.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("read Helm release %s: unknown format %T; it was made by another version of Helm", releaseName, result)
	}
	return found, nil
}

// helmClients gives Helm the clients of one cluster; it is genericclioptions.RESTClientGetter.
type helmClients struct {
	cluster   *kubeCluster
	discovery discovery.CachedDiscoveryInterface
}

func (c *helmClients) ToRESTConfig() (*rest.Config, error) {
	return rest.CopyConfig(c.cluster.config), nil
}

func (c *helmClients) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.discovery, nil
}

func (c *helmClients) ToRESTMapper() (meta.RESTMapper, error) {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(c.discovery)
	return restmapper.NewShortcutExpander(mapper, c.discovery, nil), nil
}

func (c *helmClients) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return c.cluster.loader
}

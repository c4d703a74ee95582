package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const (
	defaultNamespace    = "clustermesh-system"
	agentName           = "clustermesh-agent"     // DaemonSet, ServiceAccount
	apiserverName       = "clustermesh-apiserver" // Deployment, Service, ServiceAccount
	componentLabel      = "app.kubernetes.io/component"
	agentComponent      = "agent"
	apiserverComponent  = "apiserver"
	fieldManager        = "clustermesh-cli"
	clientQPS           = 50
	clientBurst         = 100
	kubernetesUserAgent = "clustermesh-cli"
)

// kubeFlags say which cluster a verb talks to: the kubeconfig, the context in it, and the namespace
// clustermesh lives in.
type kubeFlags struct {
	kubeconfig string // empty: $KUBECONFIG, then ~/.kube/config, then the pod's own service account
	context    string // empty: the kubeconfig's current context
	namespace  string
	// contextFlag is what the verb calls the flag of the context, "" for --context.
	contextFlag string
}

func (f *kubeFlags) register(set *pflag.FlagSet) {
	set.StringVar(&f.kubeconfig, "kubeconfig", "", "path of the kubeconfig file (default $KUBECONFIG, then ~/.kube/config)")
	set.StringVar(&f.context, "context", "", "kubeconfig context of the cluster (default the current one)")
	set.StringVarP(&f.namespace, "namespace", "n", defaultNamespace, "namespace that clustermesh runs in")
}

// kubeCluster is one Kubernetes API server with the clients to talk to it.
type kubeCluster struct {
	context   string // name of the kubeconfig context, "" in a pod
	namespace string
	loader    clientcmd.ClientConfig
	config    *rest.Config
	typed     kubernetes.Interface
	dynamic   dynamic.Interface
}

// connect makes the clients of the context that the flags name. It does not contact the API server.
func (f *kubeFlags) connect() (*kubeCluster, error) {
	loader := f.loader()
	name, err := f.contextName(loader)
	if err != nil {
		return nil, err
	}
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, fmt.Errorf("no kubeconfig in %s; choose a file with --kubeconfig or $KUBECONFIG",
			strings.Join(loader.ConfigAccess().GetLoadingPrecedence(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("load kubeconfig%s: %w; choose a file with --kubeconfig and a context with --context", f.origin(), err)
	}
	config.QPS, config.Burst, config.UserAgent = clientQPS, clientBurst, kubernetesUserAgent
	cluster := &kubeCluster{context: name, namespace: f.namespace, loader: loader, config: config}
	if cluster.typed, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make client of context %q: %w", name, err)
	}
	if cluster.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("make client of context %q: %w", name, err)
	}
	return cluster, nil
}

func (f *kubeFlags) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.context}
	overrides.Context.Namespace = f.namespace
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

// contextName is the name of the context in use. A context that is not there is an error that lists
// those that are, since clientcmd's own message does not.
func (f *kubeFlags) contextName(loader clientcmd.ClientConfig) (string, error) {
	raw, err := loader.RawConfig()
	if err != nil {
		return "", fmt.Errorf("load kubeconfig%s: %w; choose a file with --kubeconfig", f.origin(), err)
	}
	name := f.context
	if name == "" {
		name = raw.CurrentContext
	}
	if _, found := raw.Contexts[name]; found || name == "" {
		return name, nil
	}
	return "", fmt.Errorf("%s %q: no such context in the kubeconfig%s; it has %s", cmp.Or(f.contextFlag, "--context"), name, f.origin(), contextList(raw))
}

func (f *kubeFlags) origin() string {
	if f.kubeconfig == "" {
		return ""
	}
	return fmt.Sprintf(" %q", f.kubeconfig)
}

func contextList(raw api.Config) string {
	var names []string
	for name := range raw.Contexts {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

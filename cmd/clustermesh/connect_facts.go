package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/pki"
	"github.com/clustermesh/clustermesh/pkg/status"
)

const (
	configName    = "clustermesh-config"
	gatherTimeout = 30 * time.Second // of all that is read from one cluster
)

// member is one cluster as the verbs about links use it: the Kubernetes API, and our programs in its pods.
type member struct {
	*kubeCluster
	pods podRunner
}

func newMember(flags kubeFlags) (*member, error) {
	cluster, err := flags.connect()
	if err != nil {
		return nil, err
	}
	return &member{kubeCluster: cluster, pods: podExec{cluster}}, nil
}

// clusterFacts is what is known of one cluster before anything is decided.
type clusterFacts struct {
	Context                string
	Namespace              string
	UID                    string // of the namespace kube-system, which no two clusters share
	Name                   string
	Version                string
	MinWire, MaxWire       uint8  // 0: the API server is too old to say
	CABundle               string // PEM, certificates only
	PodCIDRs, ServiceCIDRs []netip.Prefix
	Backend                model.Encap
	Endpoints              []string
	Nodes                  []nodeAddrs
	Peers                  []v1alpha1.Peer
	// Problems are facts that could not be read. A cluster with any is not compared with others.
	Problems []problem
}

// nodeAddrs is a node with the addresses that nodes of other clusters send to.
type nodeAddrs struct {
	Name  string
	Addrs []netip.Addr
}

// gatherFacts reads everything from one cluster and changes nothing.
func gatherFacts(ctx context.Context, m *member) clusterFacts {
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	facts := clusterFacts{Context: m.context, Namespace: m.namespace}
	for _, read := range []func(context.Context, *member, *clusterFacts) error{
		readUID, readConfig, readPeers, readNodes, readAPIServer,
	} {
		if err := read(ctx, m, &facts); err != nil {
			facts.Problems = append(facts.Problems, problemOf("context "+m.context, err))
			break // the later ones would say the same in other words
		}
	}
	return facts
}

func readUID(ctx context.Context, m *member, facts *clusterFacts) error {
	found, err := m.typed.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	if err != nil {
		return remedied{fmt.Errorf("reach Kubernetes at %s: %w", m.host(), err), "check the server, the credentials and the context"}
	}
	facts.UID = string(found.UID)
	return nil
}

// host is where the Kubernetes API is, "" for clients without a configuration.
func (m *member) host() string {
	if m.config == nil {
		return ""
	}
	return m.config.Host
}

func readConfig(ctx context.Context, m *member, facts *clusterFacts) error {
	parsed, err := meshConfig(ctx, m)
	if err != nil {
		return err
	}
	facts.Name, facts.Backend = parsed.Cluster.Name, parsed.Routing.Backend
	facts.PodCIDRs, facts.ServiceCIDRs = masked(parsed.Cluster.PodCIDRs), masked(parsed.Cluster.ServiceCIDRs)
	facts.Endpoints = parsed.APIServer.Advertise
	if facts.Name == "" || len(facts.PodCIDRs) == 0 {
		return remedied{fmt.Errorf("ConfigMap %s/%s lacks cluster.name or cluster.podCIDRs", m.namespace, configName),
			fmt.Sprintf("run `clustermesh upgrade --context %s --set cluster.name=NAME --set cluster.podCIDRs={PREFIX,…}`", m.context)}
	}
	return nil
}

// meshConfig reads the configuration that the daemons run with. It is lenient, unlike them: the cluster may run a
// version with fields that this one does not know.
func meshConfig(ctx context.Context, m *member) (config.Config, error) {
	parsed := config.Default()
	object, err := m.typed.CoreV1().ConfigMaps(m.namespace).Get(ctx, configName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return parsed, remedied{fmt.Errorf("clustermesh is not installed in namespace %s", m.namespace),
			fmt.Sprintf("run `clustermesh install --context %s`, or name its namespace with --namespace", m.context)}
	}
	if err != nil {
		return parsed, fmt.Errorf("read ConfigMap %s/%s: %w", m.namespace, configName, err)
	}
	if err := yaml.Unmarshal([]byte(object.Data["config.yaml"]), &parsed); err != nil {
		return parsed, fmt.Errorf("parse ConfigMap %s/%s: %w", m.namespace, configName, err)
	}
	return parsed, nil
}

func readPeers(ctx context.Context, m *member, facts *clusterFacts) (err error) {
	facts.Peers, err = listPeers(ctx, m)
	return err
}

func listPeers(ctx context.Context, m *member) ([]v1alpha1.Peer, error) {
	list, err := m.dynamic.Resource(v1alpha1.Peers).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, remedied{fmt.Errorf("the kind Peer is not known in this cluster"),
			fmt.Sprintf("run `clustermesh upgrade --context %s`, which installs it", m.context)}
	}
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	peers := make([]v1alpha1.Peer, len(list.Items))
	for i, item := range list.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &peers[i]); err != nil {
			return nil, fmt.Errorf("read peer %s: %w", item.GetName(), err)
		}
	}
	return peers, nil
}

func readNodes(ctx context.Context, m *member, facts *clusterFacts) error {
	nodes, err := m.typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, node := range nodes.Items {
		row := nodeAddrs{Name: node.Name}
		for _, address := range node.Status.Addresses {
			addr, err := netip.ParseAddr(address.Address)
			if err == nil && address.Type == corev1.NodeInternalIP {
				row.Addrs = append(row.Addrs, addr.Unmap())
			}
		}
		facts.Nodes = append(facts.Nodes, row)
	}
	return nil
}

// readAPIServer asks a running mesh API server what it tells its peers.
func readAPIServer(ctx context.Context, m *member, facts *clusterFacts) error {
	pod, err := readyAPIServer(ctx, m)
	if err != nil {
		return err
	}
	said, err := askJSON[status.APIServer](ctx, m.pods, pod, nil, "/clustermesh-apiserver", "status", "-o", "json")
	if err != nil {
		return err
	}
	facts.Version, facts.MinWire, facts.MaxWire = said.Version, said.MinWire, said.MaxWire
	facts.CABundle = said.CABundle
	if len(said.Endpoints) > 0 {
		facts.Endpoints = said.Endpoints
	}
	if _, err := pki.ParseBundle([]byte(facts.CABundle)); err != nil {
		return remedied{fmt.Errorf("CA certificate that pod %s told: %w", pod, err),
			fmt.Sprintf("see `kubectl --context %s -n %s logs %s`", m.context, m.namespace, pod)}
	}
	return nil
}

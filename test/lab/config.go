package lab

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// Fabric is how the nodes of a lab are wired.
type Fabric string

// The fabrics.
const (
	// Shared puts all nodes of all clusters on one layer 2.
	Shared Fabric = "shared"
	// Routed gives each cluster its own subnet; a router between them knows the
	// nodes but no pod CIDR.
	Routed Fabric = "routed"
)

// Stack is the set of address families of nodes, pods and services.
type Stack string

// The stacks.
const (
	Dual Stack = "dual"
	IPv4 Stack = "ipv4"
	IPv6 Stack = "ipv6"
)

// CNI is what the lab itself installs for pods.
type CNI string

// The CNIs.
const (
	// NoCNI leaves nodes NotReady until something installs a network.
	NoCNI CNI = "none"
	// Bridge is the CNI bridge plugin with host routes between nodes.
	Bridge CNI = "bridge"
)

// NoKubeProxy is the KubeProxy mode that starts none.
const NoKubeProxy = "none"

// Config says what a lab consists of. The zero value of every field but
// Clusters is a sensible default.
type Config struct {
	// Name is the prefix of everything the lab makes on the machine; several
	// labs live side by side. Lower-case letters and digits; default "lab".
	Name string `json:"name"`
	// Dir is the parent of the lab's state; default LAB_DIR or /var/lib/clustermesh-lab.
	Dir      string          `json:"-"`
	Clusters []ClusterConfig `json:"clusters"`
	Fabric   Fabric          `json:"fabric"`
	Stack    Stack           `json:"stack"`
	// KubeProxy is the kube-proxy mode, default nftables, or NoKubeProxy.
	KubeProxy string `json:"kubeProxy"`
	CNI       CNI    `json:"cni"`
	// BridgeAcross also routes the pod CIDRs of the other clusters, with Bridge
	// and Shared: the comparison for a mesh of clusters.
	BridgeAcross bool `json:"bridgeAcross,omitempty"`
	// NoNodeCIDRs keeps the controller-manager from giving nodes a pod CIDR.
	NoNodeCIDRs bool `json:"noNodeCIDRs,omitempty"`
	// Images are archives that every node imports before anything can run.
	Images []string `json:"images,omitempty"`
	// Fresh takes down what is there by this name first.
	Fresh bool `json:"-"`
	// Out receives one line per step; default none.
	Out io.Writer `json:"-"`
}

// ClusterConfig is one cluster. Empty CIDRs are chosen by the cluster's place.
type ClusterConfig struct {
	Name         string         `json:"name"`
	Nodes        int            `json:"nodes"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
}

// DefaultDir is where labs keep their state unless LAB_DIR says otherwise.
func DefaultDir() string {
	if dir := os.Getenv("LAB_DIR"); dir != "" {
		return dir
	}
	return "/var/lib/clustermesh-lab"
}

var (
	labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)
	// Interface names are at most 15 bytes, and a node's port is named like it.
	clusterName = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}$`)
)

func (c Config) withDefaults() Config {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.Name, "lab")
	set(&c.Dir, DefaultDir())
	if dir, err := filepath.Abs(c.Dir); err == nil {
		c.Dir = dir
	}
	set((*string)(&c.Fabric), string(Shared))
	set((*string)(&c.Stack), string(Dual))
	set(&c.KubeProxy, "nftables")
	set((*string)(&c.CNI), string(NoCNI))
	if c.Out == nil {
		c.Out = io.Discard
	}
	c.Clusters = slices.Clone(c.Clusters)
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		if cl.PodCIDRs == nil {
			cl.PodCIDRs = c.Stack.pick(podCIDRs(i + 1))
		}
		if cl.ServiceCIDRs == nil {
			cl.ServiceCIDRs = c.Stack.pick(serviceCIDRs(i + 1))
		}
	}
	return c
}

func (c Config) validate() error {
	if !labName.MatchString(c.Name) {
		return fmt.Errorf("check lab name %q: use 1 to 16 lower-case letters and digits, a letter first", c.Name)
	}
	if err := oneOf("fabric", c.Fabric, Shared, Routed); err != nil {
		return err
	}
	if err := oneOf("stack", c.Stack, Dual, IPv4, IPv6); err != nil {
		return err
	}
	if err := oneOf("cni", c.CNI, NoCNI, Bridge); err != nil {
		return err
	}
	if err := oneOf("kube-proxy", c.KubeProxy, "nftables", "iptables", NoKubeProxy); err != nil {
		return err
	}
	if c.BridgeAcross && (c.CNI != Bridge || c.Fabric != Shared) {
		return fmt.Errorf("check bridge-across: it needs the CNI %q and the fabric %q", Bridge, Shared)
	}
	if c.CNI == Bridge && c.NoNodeCIDRs {
		return fmt.Errorf("check cni %q: it needs the nodes' pod CIDRs", Bridge)
	}
	return c.validateClusters()
}

func (c Config) validateClusters() error {
	if len(c.Clusters) == 0 || len(c.Clusters) > maxClusters {
		return fmt.Errorf("check clusters: %d given, use 1 to %d", len(c.Clusters), maxClusters)
	}
	seen := map[string]bool{}
	for _, cl := range c.Clusters {
		if !clusterName.MatchString(cl.Name) || cl.Name == "fabric" {
			return fmt.Errorf("check cluster name %q: use 1 to 11 lower-case letters and digits, a letter first, not \"fabric\"", cl.Name)
		}
		if seen[cl.Name] {
			return fmt.Errorf("check cluster name %q: given twice", cl.Name)
		}
		seen[cl.Name] = true
		if cl.Nodes < 1 || cl.Nodes > maxNodes {
			return fmt.Errorf("check nodes of cluster %s: %d given, use 1 to %d", cl.Name, cl.Nodes, maxNodes)
		}
	}
	return nil
}

func oneOf[T ~string](field string, value T, allowed ...T) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("check %s %q: use one of %q", field, value, allowed)
}

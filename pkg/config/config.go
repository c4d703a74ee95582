// Package config is the configuration that the chart's values, the ConfigMap
// and the daemons share. It is read once, strictly: an unknown field, a value
// out of range or a contradiction is an error that names the field, the value
// and the remedy, and nothing is started.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Config is all of it. The field names are those of the chart's values.
type Config struct {
	Cluster    Cluster    `json:"cluster"`
	Kubernetes Kubernetes `json:"kubernetes"`
	IPAM       IPAM       `json:"ipam"`
	Routing    Routing    `json:"routing"`
	Masquerade Masquerade `json:"masquerade"`
	Services   Services   `json:"services"`
	APIServer  APIServer  `json:"apiserver"`
	CNI        CNI        `json:"cni"`
	Log        Log        `json:"log"`
}

// Cluster says who we are.
type Cluster struct {
	Name         string         `json:"name"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
}

// Kubernetes is where the Kubernetes API answers without any Service.
type Kubernetes struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// The sources of a node's pod CIDRs.
const (
	IPAMKubernetes  = "kubernetes"   // kube-controller-manager allocates them
	IPAMClusterPool = "cluster-pool" // clustermesh-apiserver does
)

// IPAM says who gives nodes their pod CIDRs.
type IPAM struct {
	Mode        string      `json:"mode"`
	ClusterPool ClusterPool `json:"clusterPool"`
}

// ClusterPool sizes the nodes' shares in mode cluster-pool.
type ClusterPool struct {
	MaskSizeIPv4 int `json:"maskSizeIPv4"`
	MaskSizeIPv6 int `json:"maskSizeIPv6"`
}

// Routing says how packets get to other nodes.
type Routing struct {
	Backend model.Encap `json:"backend"`
	// MTU of the underlay in bytes; 0 means that of the node's interface.
	MTU int `json:"mtu"`
}

// Masquerade is about packets that leave the mesh.
type Masquerade struct {
	Enabled bool `json:"enabled"`
}

// What becomes of kube-proxy.
const (
	KubeProxyReplace = "replace" // Services are ours, and no kube-proxy is needed
	KubeProxyKeep    = "keep"    // Services are kube-proxy's
)

// Whose sockets are sent to the backends of Services right away, so that their
// packets need no translation.
const (
	SocketLBAll  = "all"
	SocketLBHost = "host" // of the node's own network; in pods, sidecars see the Services' addresses
	SocketLBOff  = "off"
)

// Services is about the Services of the cluster.
type Services struct {
	KubeProxy string `json:"kubeProxy"`
	SocketLB  string `json:"socketLB"`
	// NodePortAddresses are the networks of the node's addresses that serve
	// NodePorts; empty: its InternalIPs.
	NodePortAddresses []netip.Prefix `json:"nodePortAddresses"`
	// ExternalCIDRs are the networks in which Services may have external
	// addresses, whoever else is in there; empty: all but those of nodes, pods
	// and Services.
	ExternalCIDRs []netip.Prefix `json:"externalCIDRs"`
}

// How the mesh API is reached from other clusters.
const (
	ExposureHostNetwork  = "HostNetwork"
	ExposureNodePort     = "NodePort"
	ExposureLoadBalancer = "LoadBalancer"
)

// APIServer configures clustermesh-apiserver.
type APIServer struct {
	Port          int      `json:"port"`
	Exposure      string   `json:"exposure"`
	Advertise     []string `json:"advertise"`     // host:port told to peers; empty: found out
	EtcdEndpoints []string `json:"etcdEndpoints"` // empty: embedded etcd
}

// CNI configures what kubelet's runtime sees.
type CNI struct {
	// Exclusive moves other CNI configurations aside while ours is there.
	Exclusive bool `json:"exclusive"`
	// StartupTaint is the key of a node taint that the agent removes when it serves.
	StartupTaint string `json:"startupTaint"`
}

// Log configures logging.
type Log struct {
	Level string `json:"level"` // debug, info, warn, error
}

// Default is what holds where a file is silent.
func Default() Config {
	return Config{
		Kubernetes: Kubernetes{Port: 6443},
		IPAM:       IPAM{Mode: IPAMKubernetes, ClusterPool: ClusterPool{MaskSizeIPv4: 24, MaskSizeIPv6: 64}},
		Routing:    Routing{Backend: model.EncapAuto},
		Masquerade: Masquerade{Enabled: true},
		Services:   Services{KubeProxy: KubeProxyReplace, SocketLB: SocketLBAll, NodePortAddresses: []netip.Prefix{}, ExternalCIDRs: []netip.Prefix{}},
		APIServer:  APIServer{Port: 7473, Exposure: ExposureHostNetwork},
		Log:        Log{Level: "info"},
	}
}

// Load reads and checks a file.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads and checks YAML.
func Parse(b []byte) (Config, error) {
	c := Default()
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return Config{}, fmt.Errorf("parse: %w", err)
	}
	return c, c.Validate()
}

// Validate returns all that is wrong with c, joined.
func (c Config) Validate() error {
	return errors.Join(c.validateCluster(), c.validateKubernetes(), c.validateIPAM(), c.validateRouting(), c.validateServices(), c.validateAPIServer(), c.validateLog())
}

func (c Config) validateCluster() error {
	var errs []error
	if !wire.ValidClusterName(c.Cluster.Name) {
		errs = append(errs, invalid("cluster.name", c.Cluster.Name, "use an RFC 1123 label: 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'"))
	}
	if len(c.Cluster.PodCIDRs) == 0 {
		errs = append(errs, invalid("cluster.podCIDRs", "", "give the ranges of all pods of this cluster, for example {10.1.0.0/16}"))
	}
	all := slices.Concat(c.Cluster.PodCIDRs, c.Cluster.ServiceCIDRs)
	for i, p := range all {
		field := "cluster.podCIDRs"
		if i >= len(c.Cluster.PodCIDRs) {
			field = "cluster.serviceCIDRs"
		}
		switch {
		case !p.IsValid():
			errs = append(errs, invalid(field, "", "use a network, for example 10.1.0.0/16"))
		case p != p.Masked() || p.Bits() == 0 || p.Addr().Is4In6():
			errs = append(errs, invalid(field, p.String(), "use a network such as "+p.Masked().String()+", not everything"))
		}
		if what := Reserved(p); what != "" && p.Bits() > 0 {
			errs = append(errs, invalid(field, p.String(), "it overlaps "+what+"; use a range that can be routed"))
		}
		for _, q := range all[:i] {
			if p.Overlaps(q) {
				errs = append(errs, invalid(field, p.String(), "it overlaps "+q.String()+"; use ranges that do not"))
			}
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateKubernetes() error {
	var errs []error
	if c.Kubernetes.Host == "" || strings.ContainsAny(c.Kubernetes.Host, "/ ") {
		errs = append(errs, invalid("kubernetes.host", c.Kubernetes.Host, "give the Kubernetes API server's address as nodes reach it, without scheme and port"))
	}
	return errors.Join(append(errs, port("kubernetes.port", c.Kubernetes.Port))...)
}

func (c Config) validateIPAM() error {
	if err := oneOf("ipam.mode", c.IPAM.Mode, IPAMKubernetes, IPAMClusterPool); err != nil || c.IPAM.Mode == IPAMKubernetes {
		return err
	}
	var errs []error
	for _, p := range c.Cluster.PodCIDRs {
		field, bits, most := "ipam.clusterPool.maskSizeIPv4", c.IPAM.ClusterPool.MaskSizeIPv4, 30
		if p.Addr().Is6() {
			field, bits, most = "ipam.clusterPool.maskSizeIPv6", c.IPAM.ClusterPool.MaskSizeIPv6, 124
		}
		if bits <= p.Bits() || bits > most || bits-p.Bits() > 16 {
			errs = append(errs, invalid(field, strconv.Itoa(bits), fmt.Sprintf("use %d to %d for the range %s", p.Bits()+1, min(most, p.Bits()+16), p)))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateRouting() error {
	err := oneOf("routing.backend", string(c.Routing.Backend), string(model.EncapAuto), string(model.EncapDirect), string(model.EncapVXLAN))
	if m := c.Routing.MTU; m != 0 && (m < 1280+70 || m > 65535) {
		err = errors.Join(err, invalid("routing.mtu", strconv.Itoa(m), "use 0 (that of the node's interface) or 1350 to 65535: IPv6 needs 1280 inside the tunnel"))
	}
	return err
}

func (c Config) validateServices() error {
	errs := []error{
		oneOf("services.kubeProxy", c.Services.KubeProxy, KubeProxyReplace, KubeProxyKeep),
		oneOf("services.socketLB", c.Services.SocketLB, SocketLBAll, SocketLBHost, SocketLBOff),
	}
	for field, list := range map[string][]netip.Prefix{
		"services.nodePortAddresses": c.Services.NodePortAddresses, "services.externalCIDRs": c.Services.ExternalCIDRs,
	} {
		for _, p := range list {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				errs = append(errs, invalid(field, p.String(), "use networks, for example 192.0.2.0/24"))
			}
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateAPIServer() error {
	errs := []error{
		port("apiserver.port", c.APIServer.Port),
		oneOf("apiserver.exposure", c.APIServer.Exposure, ExposureHostNetwork, ExposureNodePort, ExposureLoadBalancer),
	}
	for _, a := range c.APIServer.Advertise {
		if err := HostPort(a); err != nil {
			errs = append(errs, invalid("apiserver.advertise", a, "use host:port"))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateLog() error {
	return oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
}

// Reserved names what in p can't be routed between hosts (RFC 6890); empty if
// there is nothing.
func Reserved(p netip.Prefix) string {
	for _, r := range []struct{ prefix, what string }{
		{"0.0.0.0/8", "this host"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local addresses"}, {"224.0.0.0/3", "multicast or reserved addresses"},
		{"::/127", "loopback"}, {"fe80::/10", "link-local addresses"}, {"ff00::/8", "multicast"},
	} {
		if p.Overlaps(netip.MustParsePrefix(r.prefix)) {
			return r.prefix + " (" + r.what + ")"
		}
	}
	return ""
}

// HostPort checks that s is host:port with a number for a port.
func HostPort(s string) error {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return fmt.Errorf("%q is not host:port", s)
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	host := s[:i]
	if err != nil || n == 0 || host == "[]" || strings.ContainsFunc(host, noHost) || strings.Contains(host, ":") && (host[0] != '[' || host[len(host)-1] != ']') {
		return fmt.Errorf("%q is not host:port", s)
	}
	return nil
}

// noHost tells what stands in no name and no address.
func noHost(c rune) bool { return c <= ' ' || c >= 0x7f || c == '/' || c == '@' }

func port(field string, p int) error {
	if p < 1 || p > 65535 {
		return invalid(field, strconv.Itoa(p), "use 1 to 65535")
	}
	return nil
}

func oneOf(field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid(field, value, "use one of "+strings.Join(allowed, ", "))
}

func invalid(field, value, remedy string) error {
	return fmt.Errorf("%s: %q is not valid: %s", field, value, remedy)
}

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerdConfig makes restrict_oom_score_adj the one special: nodes may
// themselves be in a container that is not allowed to lower scores.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + pauseImage + `"
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
`

// kubeletConfig works on cgroup v1, hybrid and v2. Nothing is evicted and no
// image collected: labs run on machines with little room.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/pki/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/pki/kubelet.key
cgroupDriver: cgroupfs
cgroupRoot: /%s
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
clusterDomain: cluster.local
clusterDNS: [%s]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: ""
evictionHard: {nodefs.available: "0%%", imagefs.available: "0%%", memory.available: "0%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
nodeStatusUpdateFrequency: 5s
`

// startRuntime runs containerd and imports the images.
func (n *Node) startRuntime(ctx context.Context) error {
	if err := n.writeFiles(map[string][]byte{"/etc/containerd/config.toml": []byte(containerdConfig)}); err != nil {
		return err
	}
	if err := n.installCNI("loopback"); err != nil {
		return err
	}
	if err := n.daemon("containerd", "containerd", "-c", "/etc/containerd/config.toml"); err != nil {
		return err
	}
	what := fmt.Sprintf("containerd on %s (see %s)", n.Name, n.Log("containerd"))
	err := poll(ctx, time.Minute, what, func() (bool, error) {
		_, err := n.Exec(ctx, "ctr", "version")
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	return n.importImages(ctx, append(n.cluster.lab.ownImages(), n.cluster.lab.cfg.Images...))
}

// startKubelet runs kubelet and, if wanted, kube-proxy.
func (n *Node) startKubelet() error {
	if err := n.writeKubeletFiles(); err != nil {
		return err
	}
	var ips []string
	for _, a := range n.Addrs.List() {
		ips = append(ips, a.String())
	}
	zone := (n.Index-1)%3 + 1
	err := n.daemon("kubelet", "kubelet", "--config=/etc/kubernetes/kubelet.yaml",
		"--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
		"--hostname-override="+n.Name, "--node-ip="+strings.Join(ips, ","),
		fmt.Sprintf("--node-labels=topology.kubernetes.io/region=lab,topology.kubernetes.io/zone=zone-%d", zone))
	if err != nil || n.cluster.lab.cfg.KubeProxy == NoKubeProxy {
		return err
	}
	return n.StartKubeProxy(n.cluster.lab.cfg.KubeProxy)
}

// StartKubeProxy runs kube-proxy in a mode (nftables, iptables).
func (n *Node) StartKubeProxy(mode string) error {
	return n.daemon("kube-proxy", "kube-proxy", "--kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig",
		"--hostname-override="+n.Name, "--proxy-mode="+mode,
		"--cluster-cidr="+join(n.cluster.Config().PodCIDRs),
		// nf_conntrack_max belongs to the whole machine: leave it.
		"--conntrack-max-per-core=0", "--conntrack-min=0")
}

// StopKubeProxy ends kube-proxy, and has it take out of the kernel what it put
// there.
func (n *Node) StopKubeProxy(ctx context.Context) error {
	if err := n.Kill(ctx, "kube-proxy"); err != nil {
		return err
	}
	_, err := n.Exec(ctx, "kube-proxy", "--cleanup")
	return err
}

func (n *Node) writeKubeletFiles() error {
	c := n.cluster
	files := map[string][]byte{}
	for file, name := range map[string]string{"ca.crt": "ca.crt", "kubelet.crt": n.Name + ".crt", "kubelet.key": n.Name + ".key"} {
		data, err := c.pki().read(name)
		if err != nil {
			return err
		}
		files[pkiDir+file] = data
	}
	for file, id := range map[string]string{"kubelet": n.Name, "kube-proxy": "kube-proxy", "admin": "admin"} {
		data, err := c.kubeconfig(c.APIServer(), id)
		if err != nil {
			return err
		}
		files["/etc/kubernetes/"+file+".kubeconfig"] = data
	}
	dns := c.Config().ServiceCIDRs[0].Addr()
	for range 10 {
		dns = dns.Next()
	}
	files["/etc/kubernetes/kubelet.yaml"] = fmt.Appendf(nil, kubeletConfig, n.Cgroup(), dns)
	return n.writeFiles(files)
}

// PodCIDRs are the node's, as its API object has them.
func (n *Node) PodCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	client, err := n.cluster.Client()
	if err != nil {
		return nil, err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", n.Name, err)
	}
	var prefixes []netip.Prefix
	for _, cidr := range node.Spec.PodCIDRs {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("parse pod CIDR of node %s: %w", n.Name, err)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

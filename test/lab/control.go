package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const pkiDir = "/etc/kubernetes/pki/"

// startControlPlane runs etcd, the API server, controller-manager and scheduler
// on the first node, and opens the API server to this machine.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.writeControlFiles(); err != nil {
		return err
	}
	n := c.Nodes[0]
	if err := n.daemon("etcd", "etcd", "--data-dir=/var/lib/etcd", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		// Nothing in a lab is worth the disk's time.
		"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"); err != nil {
		return err
	}
	if err := n.daemon("kube-apiserver", c.apiServerArgs()...); err != nil {
		return err
	}
	if err := c.startForwarder(ctx); err != nil {
		return err
	}
	if err := c.waitAPI(ctx); err != nil {
		return err
	}
	if err := n.daemon("kube-controller-manager", c.controllerManagerArgs()...); err != nil {
		return err
	}
	return n.daemon("kube-scheduler", "kube-scheduler", "--kubeconfig=/etc/kubernetes/scheduler.kubeconfig",
		"--bind-address=127.0.0.1", "--leader-elect=false")
}

func (c *Cluster) writeControlFiles() error {
	files := map[string][]byte{}
	for _, name := range []string{"ca.crt", "ca.key", "sa.key", "sa.pub", "apiserver.crt", "apiserver.key",
		"front-proxy.crt", "front-proxy.key", "admin.crt", "admin.key"} {
		data, err := c.pki().read(name)
		if err != nil {
			return err
		}
		files[pkiDir+name] = data
	}
	for _, name := range []string{"controller-manager", "scheduler"} {
		data, err := c.kubeconfig(c.APIServer(), name)
		if err != nil {
			return err
		}
		files["/etc/kubernetes/"+name+".kubeconfig"] = data
	}
	return c.Nodes[0].writeFiles(files)
}

func (c *Cluster) apiServerArgs() []string {
	bind := "::"
	if c.lab.cfg.Stack == IPv4 {
		bind = "0.0.0.0"
	}
	return []string{
		"kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
		"--service-cluster-ip-range=" + join(c.Config().ServiceCIDRs),
		"--secure-port=6443", "--bind-address=" + bind,
		"--advertise-address=" + c.Nodes[0].Addrs.Primary().String(),
		"--tls-cert-file=" + pkiDir + "apiserver.crt", "--tls-private-key-file=" + pkiDir + "apiserver.key",
		"--client-ca-file=" + pkiDir + "ca.crt",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pkiDir + "sa.pub", "--service-account-signing-key-file=" + pkiDir + "sa.key",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--kubelet-client-certificate=" + pkiDir + "admin.crt", "--kubelet-client-key=" + pkiDir + "admin.key",
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + pkiDir + "ca.crt", "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pkiDir + "front-proxy.crt", "--proxy-client-key-file=" + pkiDir + "front-proxy.key",
		"--enable-aggregator-routing", "--profiling=false",
	}
}

func (c *Cluster) controllerManagerArgs() []string {
	args := []string{
		"kube-controller-manager", "--kubeconfig=/etc/kubernetes/controller-manager.kubeconfig",
		"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials",
		"--root-ca-file=" + pkiDir + "ca.crt", "--service-account-private-key-file=" + pkiDir + "sa.key",
		"--cluster-signing-cert-file=" + pkiDir + "ca.crt", "--cluster-signing-key-file=" + pkiDir + "ca.key",
		"--service-cluster-ip-range=" + join(c.Config().ServiceCIDRs),
		// A dead node should show while a test waits.
		"--node-monitor-period=2s", "--node-monitor-grace-period=20s",
	}
	if c.lab.cfg.NoNodeCIDRs {
		return append(args, "--allocate-node-cidrs=false")
	}
	args = append(args, "--allocate-node-cidrs", "--cluster-cidr="+join(c.Config().PodCIDRs))
	switch c.lab.cfg.Stack {
	case IPv4:
		return append(args, "--node-cidr-mask-size=24")
	case IPv6:
		return append(args, "--node-cidr-mask-size=64")
	}
	return append(args, "--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")
}

// startForwarder opens the API server on this machine's loopback address. The
// port stays the same for the life of the lab: kubeconfigs name it.
func (c *Cluster) startForwarder(ctx context.Context) error {
	pid := pidFile(filepath.Join(c.dir(), "forward.pid"))
	if pid.pid() != 0 {
		return nil
	}
	if c.Port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		c.Port = port
	}
	if err := c.writeKubeconfig(); err != nil {
		return err
	}
	cgroup := filepath.Join(c.lab.cfg.cgroupName(), "forward-"+c.Name)
	// In version 2 alone, since no kubelet makes pods below it. And always a new
	// one: Linux 6.18 kills what is cloned into a cgroup that was ever killed.
	if err := c.lab.cgroups.remove(ctx, cgroup); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(c.lab.cgroups.v2, cgroup), 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	cmd := exec.Command(c.lab.ownBin("labnode"), "forward",
		fmt.Sprintf("127.0.0.1:%d", c.Port), netnsPath(c.Nodes[0].Netns()), c.apiAddress())
	return spawn(cmd, filepath.Join(c.lab.cgroups.v2, cgroup), filepath.Join(c.dir(), "forward.log"), pid)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (c *Cluster) waitAPI(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("the API server of %s (see %s)", c.Name, c.Nodes[0].Log("kube-apiserver"))
	return poll(ctx, 2*time.Minute, what, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
}

func join(prefixes []netip.Prefix) string {
	var list []string
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return strings.Join(list, ",")
}

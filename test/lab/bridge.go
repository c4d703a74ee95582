package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// installCNI puts CNI plugins of the lab's programs where the runtime looks.
func (n *Node) installCNI(plugins ...string) error {
	for _, name := range plugins {
		data, err := os.ReadFile(filepath.Join(n.cluster.lab.parts.Dir, name))
		if err != nil {
			return fmt.Errorf("install CNI plugin %s: %w", name, err)
		}
		if err := n.writeProgram("/opt/cni/bin/"+name, data); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) writeProgram(path string, data []byte) error {
	root, err := n.Root()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(root, path), data); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(root, path), 0o755)
}

// installBridges installs the CNI bridge plugin on every running node and routes
// between them. There is no masquerade: nothing leads out, and source addresses
// must survive.
func (l *Lab) installBridges(ctx context.Context) error {
	for _, c := range l.Clusters {
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			if err := n.installBridge(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Node) installBridge(ctx context.Context) error {
	cidrs, err := n.PodCIDRs(ctx)
	if err != nil {
		return err
	}
	if err := n.installCNI("bridge", "host-local", "portmap"); err != nil {
		return err
	}
	list, err := bridgeConfList(cidrs)
	if err != nil {
		return err
	}
	if err := n.writeFiles(map[string][]byte{"/etc/cni/net.d/10-bridge.conflist": list}); err != nil {
		return err
	}
	for _, c := range n.cluster.lab.Clusters {
		if c != n.cluster && !n.cluster.lab.cfg.BridgeAcross {
			continue
		}
		for _, other := range c.Nodes {
			if other == n || !other.Running() {
				continue
			}
			if err := other.routeTo(cidrs, n.Addrs); err != nil {
				return err
			}
		}
	}
	return nil
}

// routeTo routes cidrs by a neighbour's addresses, family by family.
func (n *Node) routeTo(cidrs []netip.Prefix, via Addrs) error {
	return inNetns(n.Netns(), func() error {
		for _, cidr := range cidrs {
			gw := via.V4
			if cidr.Addr().Is6() {
				gw = via.V6
			}
			dst, err := netlink.ParseIPNet(cidr.String())
			if err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("add route %s via %s on %s: %w", cidr, gw, n.Name, err)
			}
		}
		return nil
	})
}

func bridgeConfList(cidrs []netip.Prefix) ([]byte, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, cidr := range cidrs {
		ranges = append(ranges, []object{{"subnet": cidr}})
		dst := "0.0.0.0/0"
		if cidr.Addr().Is6() {
			dst = "::/0"
		}
		routes = append(routes, object{"dst": dst})
	}
	return json.Marshal(object{
		"cniVersion": "1.0.0", "name": "lab",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": object{"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables"},
		},
	})
}

// WaitReady waits until every running node's Ready condition is true, as said by
// the kubelet that runs now: what one said before a power cut stays in the API.
func (c *Cluster) WaitReady(ctx context.Context, limit time.Duration) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		err := poll(ctx, limit, "node "+n.Name+" to be ready", func() (bool, error) {
			node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			return err == nil && isReady(node) && heardSince(node, n.kubelet().started()), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// heardSince tells whether the kubelet has reported after start. Reports come
// every 5 seconds, in whole seconds.
func heardSince(node *corev1.Node, start time.Time) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.LastHeartbeatTime.After(start)
		}
	}
	return false
}

func isReady(node *corev1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

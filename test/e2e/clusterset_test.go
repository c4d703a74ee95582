package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clustermesh/clustermesh/test/fixture"
	"github.com/clustermesh/clustermesh/test/lab"
)

// TestClusterSet: Services of several clusters by the Multi-Cluster Services API
// (KEP-1645). Numbers in brackets are those of the conformance suite's specs.
func TestClusterSet(t *testing.T) {
	m := up(t, fixture.Config{Config: lab.Config{Name: "e2eset", Clusters: []lab.ClusterConfig{{Name: "west", Nodes: 1}, {Name: "east", Nodes: 1}}}})
	must(t, m.InstallAll(t.Context()))
	must(t, m.Connect(t.Context(), "west", "east"))
	pods, err := m.Probes(t.Context())
	must(t, err)
	s := &setSuite{serviceSuite{m: m}, pods[0], pods[1]}
	t.Run("one cluster exports", s.one)
	t.Run("both export", s.both)
	t.Run("restarts", s.restarts)
	t.Run("kube-proxy kept", s.kept)
	t.Run("conflict", s.conflict)
	t.Run("external name", s.externalName)
	t.Run("unexport", s.unexport)
	t.Run("uninstall", s.uninstall)
}

type setSuite struct {
	serviceSuite
	west, east fixture.Pod
}

const webService = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: probe}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: http}, {name: echo, port: 81, protocol: UDP, targetPort: echo}]}\n"
const webExport = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web}\n"

func (s *setSuite) apply(t *testing.T, cluster, manifest string) {
	t.Helper()
	c, err := s.m.Cluster(cluster)
	must(t, err)
	must(t, c.Apply(t.Context(), manifest))
}

func (s *setSuite) kubectl(t *testing.T, cluster string, args ...string) string {
	t.Helper()
	c, err := s.m.Cluster(cluster)
	must(t, err)
	out, err := c.Kubectl(t.Context(), args...)
	must(t, err)
	return out
}

// serviceImport is what clusters see of an export.
type serviceImport struct {
	Spec struct {
		Type       string
		IPs        []netip.Addr
		IPFamilies []string
		Ports      []struct {
			Name, Protocol string
			Port           int
		}
	}
	Status struct{ Clusters []struct{ Cluster string } }
}

// imported waits until a cluster has an import of the sources, with an address of
// each family if it is to have any.
func (s *setSuite) imported(t *testing.T, cluster, name, kind string, sources ...string) (i serviceImport) {
	t.Helper()
	c, err := s.m.Cluster(cluster)
	must(t, err)
	eventually(t, 20*time.Second, func() error {
		out, err := c.Kubectl(t.Context(), "get", "serviceimport", name, "-o", "json")
		if err != nil {
			return err
		}
		i = serviceImport{}
		if err := json.Unmarshal([]byte(out), &i); err != nil {
			return err
		}
		var got []string
		for _, c := range i.Status.Clusters {
			got = append(got, c.Cluster)
		}
		ips := len(i.Spec.IPFamilies)
		if kind == "Headless" {
			ips = 0
		}
		if i.Spec.Type != kind || len(i.Spec.IPFamilies) != 2 || len(i.Spec.IPs) != ips || !slices.Equal(got, sources) {
			return fmt.Errorf("ServiceImport %s of %s is %+v, want %s of %v", name, cluster, i, kind, sources)
		}
		return nil
	})
	return i
}

// condition waits until a ServiceExport has a condition, STATUS/REASON.
func (s *setSuite) condition(t *testing.T, cluster, name, kind, want string) {
	t.Helper()
	c, err := s.m.Cluster(cluster)
	must(t, err)
	eventually(t, 20*time.Second, func() error {
		out, err := c.Kubectl(t.Context(), "get", "serviceexport", name, "-o",
			fmt.Sprintf(`jsonpath={.status.conditions[?(@.type==%q)].status}/{.status.conditions[?(@.type==%q)].reason}`, kind, kind))
		if err == nil && out != want {
			err = fmt.Errorf("condition %s of ServiceExport %s in %s is %q, want %q", kind, name, cluster, out, want)
		}
		return err
	})
}

// one: what a cluster exports, all can use (3, 7, 20), and a Service of the same
// name that is not exported is no part of it (21).
func (s *setSuite) one(t *testing.T) {
	s.apply(t, "west", webService+"---\n"+webExport)
	s.apply(t, "east", webService)
	s.condition(t, "west", "web", "Valid", "True/Valid")
	s.condition(t, "west", "web", "Ready", "True/Exported")
	for from, cluster := range map[fixture.Pod]string{s.west: "west", s.east: "east"} {
		i := s.imported(t, cluster, "web", "ClusterSetIP", "west")
		for n, vip := range i.Spec.IPs {
			sources := []netip.Addr{from.IPs.All()[n]} // as itself
			if cluster == "west" {
				sources = append(sources, s.node(t, from)...) // sent to itself
			}
			s.serviceSuite.both(t, from, vip, 80, 81, want{[]fixture.Pod{s.west}, sources})
		}
	}
}

// both: clusters that export the same name are one Service. One whose backends
// are gone is left at once.
func (s *setSuite) both(t *testing.T) {
	s.apply(t, "east", webExport)
	for _, cluster := range []string{"west", "east"} {
		s.imported(t, cluster, "web", "ClusterSetIP", "east", "west")
		s.condition(t, cluster, "web", "Conflict", "False/NoConflicts")
	}
	vip := s.imported(t, "east", "web", "ClusterSetIP", "east", "west").Spec.IPs[0]
	to := net.JoinHostPort(vip.String(), "80")
	sources := append(s.node(t, s.east), s.east.IPs.V4)
	s.check(t, s.east, to, want{[]fixture.Pod{s.west, s.east}, sources})
	s.kubectl(t, "west", "patch", "service", "web", "--type=merge", "-p", `{"spec":{"selector":{"app":"nobody"}}}`)
	s.check(t, s.east, to, want{[]fixture.Pod{s.east}, sources})
	s.kubectl(t, "west", "patch", "service", "web", "--type=merge", "-p", `{"spec":{"selector":{"app":"probe"}}}`)
	s.check(t, s.east, to, want{[]fixture.Pod{s.west, s.east}, sources})
}

// restarts: an API server that starts anew leaves everything as it was, address
// included, and what somebody deletes is back.
func (s *setSuite) restarts(t *testing.T) {
	before := s.imported(t, "west", "web", "ClusterSetIP", "east", "west")
	uid := s.kubectl(t, "west", "get", "serviceimport", "web", "-o", "jsonpath={.metadata.uid}")
	killAndWait(t, node(t, s.m, s.west.Node), "clustermesh-apiserver", func() error { return nil })
	time.Sleep(5 * time.Second) // it has read Kubernetes by then
	after := s.imported(t, "west", "web", "ClusterSetIP", "east", "west")
	if now := s.kubectl(t, "west", "get", "serviceimport", "web", "-o", "jsonpath={.metadata.uid}"); now != uid || !slices.Equal(before.Spec.IPs, after.Spec.IPs) {
		t.Errorf("after a restart the import is %s with %v, was %s with %v", now, after.Spec.IPs, uid, before.Spec.IPs)
	}
	sources := append(s.node(t, s.west), s.west.IPs.V4)
	s.check(t, s.west, net.JoinHostPort(after.Spec.IPs[0].String(), "80"), want{[]fixture.Pod{s.west, s.east}, sources})
	s.kubectl(t, "west", "delete", "serviceimport", "web")
	again := s.imported(t, "west", "web", "ClusterSetIP", "east", "west")
	eventually(t, 20*time.Second, func() error { // Kubernetes deletes what the old one owned
		again = s.imported(t, "west", "web", "ClusterSetIP", "east", "west")
		got, err := s.m.Tally(t.Context(), s.west, net.JoinHostPort(again.Spec.IPs[0].String(), "80"), "--count", "20")
		if err == nil && (len(got.Errors) > 0 || len(got.Pods) != 2) {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
}

// kept: kube-proxy reaches the backends of other clusters as well.
func (s *setSuite) kept(t *testing.T) {
	n := node(t, s.m, s.west.Node)
	set := func(mode string) {
		t.Helper()
		_, err := s.m.CLI(t.Context(), "upgrade", "--context", "west", "--set", "services.kubeProxy="+mode)
		must(t, err)
	}
	vip := s.imported(t, "west", "web", "ClusterSetIP", "east", "west").Spec.IPs[0]
	set("keep")
	must(t, n.StartKubeProxy("nftables"))
	sources := append(s.node(t, s.west), s.west.IPs.V4)
	s.check(t, s.west, net.JoinHostPort(vip.String(), "80"), want{[]fixture.Pod{s.west, s.east}, sources})
	must(t, n.StopKubeProxy(t.Context()))
	set("replace")
	s.check(t, s.west, net.JoinHostPort(vip.String(), "80"), want{[]fixture.Pod{s.west, s.east}, sources})
}

// conflict: of ports that differ all are there, and both clusters are told (9).
func (s *setSuite) conflict(t *testing.T) {
	s.kubectl(t, "east", "patch", "service", "web", "--type=json", "-p", `[{"op":"add","path":"/spec/ports/-","value":{"name":"more","port":90,"targetPort":8080}}]`)
	for _, cluster := range []string{"west", "east"} {
		s.condition(t, cluster, "web", "Conflict", "True/PortConflict")
		eventually(t, 20*time.Second, func() error {
			if i := s.imported(t, cluster, "web", "ClusterSetIP", "east", "west"); len(i.Spec.Ports) != 3 {
				return fmt.Errorf("ports of %s: %v", cluster, i.Spec.Ports)
			}
			return nil
		})
	}
	i := s.imported(t, "west", "web", "ClusterSetIP", "east", "west")
	s.check(t, s.west, net.JoinHostPort(i.Spec.IPs[0].String(), "90"), want{[]fixture.Pod{s.east}, []netip.Addr{s.west.IPs.V4}}) // who does not have it gets nothing (23)
}

// externalName can't be exported (13).
func (s *setSuite) externalName(t *testing.T) {
	s.apply(t, "west", "apiVersion: v1\nkind: Service\nmetadata: {name: elsewhere}\nspec: {type: ExternalName, externalName: elsewhere.example}\n---\n"+
		strings.ReplaceAll(webExport, "name: web", "name: elsewhere"))
	s.condition(t, "west", "elsewhere", "Valid", "False/InvalidServiceType")
	if out := s.kubectl(t, "west", "get", "serviceimports", "-o", "name"); strings.Contains(out, "elsewhere") {
		t.Errorf("imports: %s", out)
	}
}

// unexport: the import lives as long as one cluster exports (2), and nothing is
// left of it after that (3, 24).
func (s *setSuite) unexport(t *testing.T) {
	s.kubectl(t, "west", "delete", "serviceexport", "web")
	i := s.imported(t, "west", "web", "ClusterSetIP", "east")
	s.check(t, s.west, net.JoinHostPort(i.Spec.IPs[0].String(), "80"), want{[]fixture.Pod{s.east}, []netip.Addr{s.west.IPs.V4}})
	s.kubectl(t, "east", "delete", "serviceexport", "web")
	for _, cluster := range []string{"west", "east"} {
		eventually(t, 20*time.Second, func() error {
			left := s.kubectl(t, cluster, "get", "serviceimports,services,endpointslices", "-o", "name") + s.kubectl(t, cluster, "get", "endpointslices", "-l", "multicluster.kubernetes.io/service-name", "-o", "name")
			if strings.Contains(left, "serviceimport") || strings.Contains(left, "clusterset-") {
				return fmt.Errorf("%s has %s", cluster, left)
			}
			return nil
		})
	}
}

// uninstall: what users wrote stays, what we made of it goes.
func (s *setSuite) uninstall(t *testing.T) {
	s.apply(t, "west", webExport)
	s.imported(t, "west", "web", "ClusterSetIP", "west")
	_, err := s.m.CLI(t.Context(), "disconnect", "--context", "west", "--destination-context", "east")
	must(t, err)
	_, err = s.m.CLI(t.Context(), "uninstall", "--context", "west")
	must(t, err)
	eventually(t, 30*time.Second, func() error {
		left := s.kubectl(t, "west", "get", "serviceimports,services,endpointslices", "-o", "name")
		if strings.Contains(left, "serviceimport") || strings.Contains(left, "clusterset-") {
			return fmt.Errorf("west has %s", left)
		}
		return nil
	})
	s.kubectl(t, "west", "get", "serviceexport", "web")
}

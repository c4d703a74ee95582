package main

import (
	"log/slog"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/testutil"
	"github.com/clustermesh/clustermesh/pkg/version"
)

// minimal are the values that have no default.
const minimal = `
cluster: {name: east, podCIDRs: [10.1.0.0/16, "fd00:10:1::/48"], serviceCIDRs: [10.96.0.0/16]}
kubernetes: {host: 192.0.2.10}
`

func parseValues(t *testing.T, sources ...string) map[string]any {
	t.Helper()
	merged := map[string]any{}
	for _, source := range sources {
		values := map[string]any{}
		if err := yaml.Unmarshal([]byte(source), &values); err != nil {
			t.Fatal(err)
		}
		for key, value := range values {
			setValue(merged, value, key)
		}
	}
	return merged
}

// render renders the chart without a cluster.
func render(t *testing.T, values map[string]any) string {
	t.Helper()
	loaded, err := loadChart()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkedValues(loaded, values); err != nil {
		t.Fatal(err)
	}
	// The version of a build must not be in golden files.
	loaded.Metadata.Version, loaded.Metadata.AppVersion = "1.2.3", "1.2.3"
	run := action.NewInstall(action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler)))
	run.ReleaseName, run.Namespace = releaseName, defaultNamespace
	run.DryRunStrategy = action.DryRunClient
	run.KubeVersion = &common.KubeVersion{Version: "v1.36.0", Major: "1", Minor: "36"}
	result, err := run.Run(loaded, values)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := asRelease(result)
	if err != nil {
		t.Fatal(err)
	}
	return rendered.Manifest
}

func TestChartGolden(t *testing.T) {
	tests := map[string]string{
		"default":  ``,
		"nodeport": `{apiserver: {exposure: NodePort, port: 7474}, service: {nodePort: 30473, annotations: {a: b}}}`,
		"loadbalancer": `{apiserver: {exposure: LoadBalancer, advertise: ["mesh.example.org:7473"]},
			service: {loadBalancerClass: x, loadBalancerSourceRanges: [192.0.2.0/24]}}`,
		"replicas": `{pods: {apiserver: {replicas: 3, tolerations: [{operator: Exists}], nodeSelector: {role: mesh}, resources: {requests: {memory: 300Mi}}},
			agent: {maxUnavailable: 1, resources: {requests: {cpu: 50m}}}}, image: {digest: "sha256:` + strings.Repeat("0", 64) + `", pullSecrets: [regcred]}}`,
		"pool": `{ipam: {mode: cluster-pool}, apiserver: {exposure: NodePort}, cni: {exclusive: true, startupTaint: clustermesh.io/agent-not-ready}}`,
		"etcd": `{apiserver: {etcdEndpoints: ["https://etcd.example.org:2379"]}, pods: {apiserver: {etcdSecret: etcd-client}}}`,
	}
	for name, values := range tests {
		t.Run(name, func(t *testing.T) {
			got := render(t, parseValues(t, minimal, values))
			testutil.Golden(t, "chart-"+name+".golden.yaml", []byte(got))
		})
	}
}

// A changed configuration must roll the pods, since they read it once.
func TestConfigChangesPodTemplate(t *testing.T) {
	before := render(t, parseValues(t, minimal))
	after := render(t, parseValues(t, minimal, `{log: {level: debug}}`))
	checksums := func(manifest string) (found []string) {
		for line := range strings.Lines(manifest) {
			if strings.Contains(line, "config-checksum") {
				found = append(found, line)
			}
		}
		return found
	}
	b, a := checksums(before), checksums(after)
	if len(b) != 2 || len(a) != 2 || a[0] == b[0] || a[1] == b[1] {
		t.Errorf("checksums before %q, after %q; want two each, all different", b, a)
	}
}

func TestChartHasProgramVersion(t *testing.T) {
	loaded, err := loadChart()
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Metadata.Version != version.Version || loaded.AppVersion() != version.Version {
		t.Errorf("chart versions %s, %s; want %s", loaded.Metadata.Version, loaded.AppVersion(), version.Version)
	}
}

func TestBadValues(t *testing.T) {
	tests := map[string]struct{ values, want string }{
		"unknown field":       {`{routing: {bakend: vxlan}}`, "routing.bakend: unknown field; known are backend, mtu"},
		"unknown section":     {`{rooting: {}}`, "rooting: unknown field; known are apiserver, cluster"},
		"wrong choice":        {`{routing: {backend: wireguard}}`, `routing.backend: "wireguard" is not allowed; must be auto, direct or vxlan`},
		"wrong type":          {`{masquerade: {enabled: "no"}}`, `masquerade.enabled: "no" is not allowed; must be true or false`},
		"port out of range":   {`{apiserver: {port: 70000}}`, `apiserver.port: 70000 is not allowed; must be a port from 1 to 65535`},
		"not a CIDR":          {`{cluster: {podCIDRs: [10.1.0.0]}}`, `cluster.podCIDRs.0: "10.1.0.0" is not allowed; must be a network in CIDR notation`},
		"no pod CIDRs":        {`{cluster: {podCIDRs: []}}`, `cluster.podCIDRs: [] is not allowed; must be a list of at least one network`},
		"host bits":           {`{cluster: {podCIDRs: [10.1.2.3/16]}}`, `use a network such as 10.1.0.0/16`},
		"overlapping CIDRs":   {`{cluster: {serviceCIDRs: [10.1.128.0/20]}}`, `cluster.serviceCIDRs: "10.1.128.0/20" is not valid: it overlaps 10.1.0.0/16`},
		"cluster name":        {`{cluster: {name: East_1}}`, `cluster.name: "East_1" is not allowed; must be an RFC 1123 label`},
		"no API server":       {`{kubernetes: {host: ""}}`, `kubernetes.host: "" is not allowed; must be an address or a name of the Kubernetes API server`},
		"MTU too small":       {`{routing: {mtu: 500}}`, `routing.mtu: 500 is not allowed; must be 0`},
		"advertise no port":   {`{apiserver: {advertise: [mesh.example.org]}}`, `apiserver.advertise.0: "mesh.example.org" is not allowed; must be host:port`},
		"no replicas":         {`{pods: {apiserver: {replicas: 0}}}`, `pods.apiserver.replicas: 0 is not allowed; must be a number from 1 to 9`},
		"digest":              {`{image: {digest: latest}}`, `image.digest: "latest" is not allowed; must be empty or sha256:`},
		"two errors at once":  {`{log: {level: loud}, ipam: {mode: dhcp}}`, "ipam.mode: \"dhcp\" is not allowed; must be kubernetes or cluster-pool\nlog.level: \"loud\""},
		"section not a table": {`{cni: none}`, `cni: "none" is not allowed`},
	}
	loaded, err := loadChart()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := checkedValues(loaded, parseValues(t, minimal, tt.values))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v\nwant it to contain %s", err, tt.want)
			}
		})
	}
}

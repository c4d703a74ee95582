package podnet

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// request is a CNI call that has been understood.
type request struct {
	api.Request
	conf    *types.PluginConf
	version string // of the CNI specification that the runtime speaks
	key     model.PodKey
	args    map[string]string
	ports   []model.HostPort
	netns   *os.File // passed by the plugin; may be nil
}

func (r *request) namespace() string { return r.args["K8S_POD_NAMESPACE"] }
func (r *request) podName() string   { return r.args["K8S_POD_NAME"] }

// since says in which version of the specification a verb appeared.
func since(verb string) string {
	switch verb {
	case "CHECK":
		return "0.4.0"
	case "STATUS", "GC":
		return "1.1.0"
	}
	return "0.1.0"
}

// parse checks everything that can be told without looking at the system.
func parse(in api.Request, netns *os.File) (*request, error) {
	r := &request{
		Request: in, conf: &types.PluginConf{}, version: api.Newest, netns: netns,
		key:  model.PodKey{ContainerID: in.ContainerID, IfName: in.IfName},
		args: parseArgs(in.Args),
	}
	if err := json.Unmarshal(in.Config, r.conf); err != nil {
		return r, refuse(api.CodeDecode, "check the network configuration on standard input", "decode network configuration: %v", err)
	}
	if err := r.checkVersion(); err != nil {
		return r, err
	}
	if err := r.parsePorts(); err != nil {
		return r, err
	}
	if err := utils.ValidateNetworkName(r.conf.Name); err != nil {
		return r, &Error{Code: err.Code, Msg: err.Msg, Remedy: err.Details}
	}
	if slices.Contains([]string{"ADD", "DEL", "CHECK"}, in.Command) {
		if err := cmpError(utils.ValidateContainerID(in.ContainerID), utils.ValidateInterfaceName(in.IfName)); err != nil {
			return r, &Error{Code: err.Code, Msg: "CNI_CONTAINERID or CNI_IFNAME: " + err.Msg, Remedy: err.Details}
		}
	}
	return r, nil
}

func cmpError(errs ...*types.Error) *types.Error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *request) checkVersion() error {
	v := r.conf.CNIVersion
	if v == "" {
		v = "0.1.0" // what the specification says of a missing version
	}
	if !slices.Contains(api.Versions(), v) {
		return refuse(api.CodeIncompatible, "supported: "+strings.Join(api.Versions(), ", "), "cniVersion %q is not supported", v)
	}
	r.version = v
	if first := since(r.Command); !atLeast(v, first) {
		return refuse(api.CodeIncompatible, "set cniVersion to "+first+" or newer", "cniVersion %s has no %s", v, r.Command)
	}
	return nil
}

func atLeast(v, other string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, other)
	return err == nil && ok
}

// parseArgs reads CNI_ARGS, K=V;K=V. What is malformed is left out: the values
// are for people only.
func parseArgs(s string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			out[k] = v
		}
	}
	return out
}

// parsePorts reads the host ports of the pod (CNI conventions, "portMappings").
func (r *request) parsePorts() error {
	var conf struct {
		RuntimeConfig struct {
			PortMappings []struct {
				HostPort, ContainerPort int
				Protocol, HostIP        string
			} `json:"portMappings"`
		} `json:"runtimeConfig"`
	}
	if err := json.Unmarshal(r.Config, &conf); err != nil {
		return refuse(api.CodeDecode, "check runtimeConfig.portMappings", "decode network configuration: %v", err)
	}
	for _, m := range conf.RuntimeConfig.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		protocol, known := map[string]uint8{"": 6, "tcp": 6, "udp": 17, "sctp": 132}[strings.ToLower(m.Protocol)]
		if !known || m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return refuse(api.CodeConfig, "use tcp, udp or sctp, and ports from 1 to 65535", "port mapping %d to %d/%s", m.HostPort, m.ContainerPort, m.Protocol)
		}
		p := model.HostPort{Protocol: protocol, Host: uint16(m.HostPort), Container: uint16(m.ContainerPort)}
		if addr, err := netip.ParseAddr(m.HostIP); err == nil && !addr.IsUnspecified() {
			p.Addr = addr.Unmap()
		} else if m.HostIP != "" && err != nil {
			return refuse(api.CodeConfig, "use an address of the node, or none for all", "hostIP %q of port mapping %d", m.HostIP, m.HostPort)
		}
		r.ports = append(r.ports, p)
	}
	return nil
}

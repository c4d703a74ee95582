package podnet

import (
	"encoding/json"
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

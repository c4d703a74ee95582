// Package api is what the CNI plugin and the agent say to each other over the
// agent's unix socket: one HTTP request per CNI verb. It holds words only and
// imports next to nothing, because the plugin is started for every pod.
package api

import "time"

// DefaultSocket is where the agent listens. Only root may connect.
const DefaultSocket = "/run/clustermesh/agent.sock"

// ServedFile, beside the socket, is written again and again while the agent can
// wire pods. STATUS goes by it for ServedGrace: if it failed while an agent is
// restarted, kubelet would call the node not ready, and Kubernetes take all of
// its pods out of their Services. An ADD meanwhile is tried again.
const (
	ServedFile  = "served"
	ServedGrace = time.Minute
)

// Path takes a Request as JSON by POST. The plugin attaches a file descriptor
// of the pod's network namespace (SCM_RIGHTS) to the first byte, so that the
// agent needs to see neither the host's /proc nor its /run/netns. The answer is
// 200 with what the plugin has to print, or another status with a CNI error.
const Path = "/v1/cni"

// PluginType is the file name of the plugin, which is the `type` in a CNI config.
const PluginType = "clustermesh-cni"

// Newest is the newest version of the CNI specification that is spoken.
const Newest = "1.1.0"

// Versions lists all versions of the CNI specification that are spoken.
func Versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", Newest} }

// Request is a CNI call: the environment variables and the standard input.
type Request struct {
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	NetNS       string `json:"netns,omitempty"`
	IfName      string `json:"ifname,omitempty"`
	Args        string `json:"args,omitempty"`
	Config      []byte `json:"config,omitempty"`
}

// Codes of the CNI specification that plugin and agent both use.
const (
	CodeIncompatible uint = 1
	CodeEnvironment  uint = 4
	CodeIO           uint = 5
	CodeDecode       uint = 6
	CodeConfig       uint = 7
	CodeNetNS        uint = 8
	CodeTryAgain     uint = 11
	CodeUnavailable  uint = 50
	CodeInternal     uint = 999
)

// Error is a CNI error as it is printed.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

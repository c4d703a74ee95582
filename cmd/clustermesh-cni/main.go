// Command clustermesh-cni is the CNI plugin. The container runtime starts it
// for every verb of every pod, so it knows nothing and only passes the call on
// to the agent of this node. It speaks the CNI specification up to 1.1.0.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// socketVariable names another socket; the tests use it.
const socketVariable = "CLUSTERMESH_CNI_SOCKET"

func main() {
	os.Exit(run(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

func run(env func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	req := api.Request{
		Command: env("CNI_COMMAND"), ContainerID: env("CNI_CONTAINERID"),
		NetNS: env("CNI_NETNS"), IfName: env("CNI_IFNAME"), Args: env("CNI_ARGS"),
	}
	if req.Command == "" {
		fmt.Fprintf(stderr, "clustermesh-cni: CNI plugin, to be started by a container runtime; CNI versions %s\n", strings.Join(api.Versions(), ", "))
		return fail(stdout, req, api.CodeEnvironment, "CNI_COMMAND is not set", "ADD, DEL, CHECK, STATUS, GC or VERSION")
	}
	var err error
	if req.Config, err = io.ReadAll(stdin); err != nil {
		return fail(stdout, req, api.CodeIO, "read standard input: "+err.Error(), "")
	}
	if req.Command == "VERSION" {
		return printVersion(stdout, req)
	}
	socket := env(socketVariable)
	if socket == "" {
		socket = api.DefaultSocket
	}
	ok, body, err := call(socket, req, timeout(req.Command))
	if req.Command == "STATUS" && !ok && justServed(socket) {
		return 0
	}
	if err != nil {
		return unreachable(req, err, stdout, stderr)
	}
	if _, err := stdout.Write(body); err != nil {
		fmt.Fprintln(stderr, "clustermesh-cni: write result:", err)
		return 1
	}
	if !ok {
		return 1
	}
	return 0
}

// justServed tells whether an agent could wire pods a moment ago, so that one can
// be expected to again in a moment.
func justServed(socket string) bool {
	file, err := os.Stat(filepath.Join(filepath.Dir(socket), api.ServedFile))
	if err != nil {
		return false
	}
	age := time.Since(file.ModTime())
	return age >= 0 && age < api.ServedGrace
}

// timeout leaves the agent time to answer with a reason first.
func timeout(verb string) time.Duration {
	if verb == "STATUS" {
		return 5 * time.Second
	}
	return 90 * time.Second
}

// unreachable answers in place of an agent that is not there. A pod must be
// deletable then: the veth goes with the pod's network namespace, and the agent
// frees the address when it sees that.
func unreachable(req api.Request, err error, stdout, stderr io.Writer) int {
	const remedy = "see the clustermesh-agent pod of this node in namespace clustermesh-system"
	msg := "the clustermesh agent of this node does not answer: " + err.Error()
	switch req.Command {
	case "DEL":
		fmt.Fprintf(stderr, "clustermesh-cni: DEL %s %s: %s; the agent will free the address later\n", req.ContainerID, req.IfName, msg)
		return 0
	case "STATUS":
		return fail(stdout, req, api.CodeUnavailable, msg, remedy)
	}
	return fail(stdout, req, api.CodeTryAgain, msg, remedy)
}

func fail(stdout io.Writer, req api.Request, code uint, msg, details string) int {
	data, err := json.Marshal(api.Error{CNIVersion: version(req), Code: code, Msg: msg, Details: details})
	if err == nil {
		stdout.Write(append(data, '\n')) //nolint:errcheck // there is nobody else to tell
	}
	return 1
}

func printVersion(stdout io.Writer, req api.Request) int {
	data, err := json.Marshal(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{version(req), api.Versions()})
	if err == nil {
		_, err = stdout.Write(append(data, '\n'))
	}
	if err != nil {
		return 1
	}
	return 0
}

// version is what the runtime speaks, or our newest if that is not known.
func version(req api.Request) string {
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	if json.Unmarshal(req.Config, &conf) != nil || !slices.Contains(api.Versions(), conf.CNIVersion) {
		return api.Newest
	}
	return conf.CNIVersion
}

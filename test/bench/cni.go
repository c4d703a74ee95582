package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
)

const (
	cniConf   = "/etc/cni/net.d/05-clustermesh.conflist"
	cniPlugin = "/opt/cni/bin/clustermesh-cni"
)

// add measures CNI ADD as a container runtime sees it: from the start of the
// plugin's process to its end.
func (a *agentRun) add(ctx context.Context, name string) error {
	conf, err := pluginConf()
	if err != nil {
		return err
	}
	var took []time.Duration
	const pods = 60
	for i := range pods {
		d, err := addOne(ctx, conf, fmt.Sprintf("bench-%d", i))
		if err != nil {
			return err
		}
		if i >= 10 { // warm by then
			took = append(took, d)
		}
	}
	p50, p99 := latencies(name, took)
	progress("%s: p50 %.1f ms, p99 %.1f ms", name, p50.Value, p99.Value)
	a.results = append(a.results, p50.atMost(30), p99)
	return nil
}

// pluginConf is what the runtime hands to the plugin: its part of the installed
// list, with the list's name and version.
func pluginConf() ([]byte, error) {
	data, err := os.ReadFile(cniConf)
	if err != nil {
		return nil, err
	}
	var list struct {
		Name       string           `json:"name"`
		CNIVersion string           `json:"cniVersion"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil || len(list.Plugins) == 0 {
		return nil, fmt.Errorf("read %s: %d plugins, %w", cniConf, len(list.Plugins), err)
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, list.CNIVersion
	return json.Marshal(conf)
}

// addOne attaches a network namespace and takes it off again.
func addOne(ctx context.Context, conf []byte, name string) (time.Duration, error) {
	if err := newNetns(name); err != nil {
		return 0, err
	}
	defer func() { _ = netns.DeleteNamed(name) }()
	call := func(verb string) error {
		cmd := exec.CommandContext(ctx, cniPlugin)
		cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + name, "CNI_NETNS=/run/netns/" + name,
			"CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name}
		cmd.Stdin = bytes.NewReader(conf)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("CNI %s: %w: %s", verb, err, out)
		}
		return nil
	}
	start := time.Now()
	if err := call("ADD"); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, call("DEL")
}

// newNetns makes a named network namespace, on a thread that ends with it.
func newNetns(name string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		ns, err := netns.NewNamed(name)
		if err == nil {
			err = ns.Close()
		}
		done <- err
	}()
	return <-done
}

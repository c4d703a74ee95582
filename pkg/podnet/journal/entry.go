package journal

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// Entry is one attachment.
type Entry struct {
	Pod     model.Pod
	Network string // name in the CNI configuration
	// Ready is false while ADD is at work. An entry that is found so after a
	// restart belongs to nobody: the runtime never got an answer.
	Ready   bool
	Created time.Time
}

const version = 1

// file is an entry as it is stored.
type file struct {
	Version     int          `json:"version"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	Namespace   string       `json:"namespace,omitempty"`
	Name        string       `json:"name,omitempty"`
	IPs         []netip.Addr `json:"ips"`
	HostIf      string       `json:"hostIf"`
	MAC         string       `json:"mac"`
	HostPorts   string       `json:"hostPorts,omitempty"`
	Network     string       `json:"network"`
	Ready       bool         `json:"ready"`
	Created     time.Time    `json:"created"`
}

func (e Entry) file() file {
	return file{
		Version:     version,
		ContainerID: e.Pod.Key.ContainerID,
		IfName:      e.Pod.Key.IfName,
		Namespace:   e.Pod.Namespace,
		Name:        e.Pod.Name,
		IPs:         e.Pod.IPs.All(),
		HostIf:      e.Pod.HostIf,
		MAC:         net.HardwareAddr(e.Pod.MAC[:]).String(),
		HostPorts:   e.Pod.HostPorts,
		Network:     e.Network,
		Ready:       e.Ready,
		Created:     e.Created.UTC(),
	}
}

// VersionError says that an entry was written by an agent of a newer version,
// whose pods are running.
type VersionError struct{ Version int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the entry has version %d, this agent knows %d: run the version of clustermesh-agent that wrote it, or drain the node first", e.Version, version)
}

func decode(data []byte) (Entry, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return Entry{}, fmt.Errorf("decode: %w", err)
	}
	switch {
	case f.Version > version:
		return Entry{}, &VersionError{f.Version}
	case f.Version != version:
		return Entry{}, fmt.Errorf("version is %d, this agent knows %d", f.Version, version)
	}
	if f.ContainerID == "" || f.IfName == "" || f.HostIf == "" {
		return Entry{}, fmt.Errorf("containerID %q, ifName %q, hostIf %q: none may be empty", f.ContainerID, f.IfName, f.HostIf)
	}
	mac, err := net.ParseMAC(f.MAC)
	if err != nil || len(mac) != len(model.MAC{}) {
		return Entry{}, fmt.Errorf("mac %q is not a hardware address of 6 bytes", f.MAC)
	}
	e := Entry{
		Pod: model.Pod{
			Key:       model.PodKey{ContainerID: f.ContainerID, IfName: f.IfName},
			Namespace: f.Namespace, Name: f.Name,
			HostIf: f.HostIf, MAC: model.MAC(mac), HostPorts: f.HostPorts,
		},
		Network: f.Network, Ready: f.Ready, Created: f.Created,
	}
	for _, ip := range f.IPs {
		e.Pod.IPs = e.Pod.IPs.Add(ip)
	}
	if n := len(e.Pod.IPs.All()); n == 0 || n != len(f.IPs) {
		return Entry{}, fmt.Errorf("ips %v: want one address or one of each family", f.IPs)
	}
	return e, nil
}

package podnet

import (
	"bytes"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// encodeResult is the answer to ADD in the runtime's version. There is no DNS
// part: the kubelet writes resolv.conf.
func encodeResult(pod model.Pod, req *request, mtu MTU) ([]byte, error) {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: pod.HostIf, Mac: net.HardwareAddr(HostMAC[:]).String(), Mtu: mtu.Device},
			{Name: pod.Key.IfName, Mac: net.HardwareAddr(pod.MAC[:]).String(), Mtu: mtu.Device, Sandbox: req.NetNS},
		},
	}
	for _, ip := range pod.IPs.All() {
		gw := net.IP(gateway(ip).AsSlice())
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: *hostNet(ip), Gateway: gw})
		r.Routes = append(r.Routes, &types.Route{Dst: *defaultNet(ip), GW: gw, MTU: mtu.Route})
	}
	converted, err := r.GetAsVersion(req.version)
	if err != nil {
		return nil, fmt.Errorf("convert result to version %s: %w", req.version, err)
	}
	var out bytes.Buffer
	if err := converted.PrintTo(&out); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return out.Bytes(), nil
}

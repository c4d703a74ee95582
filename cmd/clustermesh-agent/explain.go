package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/podnet"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// explain answers GET /v1/services, of one Service with ?service=namespace/name.
// It plans anew from the tables: nobody else is held up by a question.
func (s *services) explain(w http.ResponseWriter, r *http.Request) {
	out := status.NodeServices{Node: s.world.local.Name, KubeProxy: !s.ours(), Ports: []status.ServicePort{}}
	if out.KubeProxy {
		writeJSON(w, out)
		return
	}
	namespace, name, _ := strings.Cut(r.URL.Query().Get("service"), "/")
	base, known := s.base()
	planned, _ := s.state()
	switch err := s.loop.Sync(r.Context()); {
	case !known || !planned:
		out.Error = "not every Service, EndpointSlice and Node is known yet"
	case err != nil:
		out.Error = err.Error()
	default:
		out.Programmed = true
	}
	p := service.NewPlanner()
	p.SetBase(base)
	p.SetPorts(s.ports.Rows(), nil)
	p.SetSlices(s.slices.Rows(), nil)
	p.Plan()
	for _, e := range p.Explain(namespace, name) {
		out.Ports = append(out.Ports, portStatus(e))
	}
	writeJSON(w, out)
}

func portStatus(e service.Explanation) status.ServicePort {
	out := status.ServicePort{Service: e.Port.Service(), Name: e.Port.Port, Protocol: protocolName(e.Row.Protocol), Port: e.Row.Port,
		Fronts: []status.ServiceFront{}, Endpoints: []status.ServiceEndpoint{}}
	for _, f := range e.Fronts {
		backends := map[netip.AddrPort]bool{}
		for _, b := range f.Front.Slots.All(f.Key.Addr.Is6()) {
			backends[b] = true
		}
		row := status.ServiceFront{Address: netip.AddrPortFrom(f.Key.Addr, f.Key.Port).String(), Outside: f.Key.Outside, Verdict: f.Front.Verdict.String(),
			Backends: len(backends), AffinitySeconds: f.Front.AffinitySeconds, Ranges: f.Front.Ranges}
		if f.Owner != e.Port {
			row.Owner = f.Owner.String()
		}
		out.Fronts = append(out.Fronts, row)
	}
	for _, x := range e.Endpoints {
		out.Endpoints = append(out.Endpoints, status.ServiceEndpoint{Address: x.AddrPort.String(), Node: x.Node, Zone: x.Zone, Used: x.Used, Why: x.Why})
	}
	return out
}

func protocolName(n uint8) string {
	switch n {
	case 17:
		return "UDP"
	case 132:
		return "SCTP"
	}
	return "TCP"
}

// printServices asks the agent of this node over its socket.
func printServices(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("services", flag.ContinueOnError)
	fs.SetOutput(out)
	one := fs.String("service", "", "only this one, as `namespace/name`")
	socket := fs.String("socket", podnet.DefaultSocket, "the agent's unix socket")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *one != "" && strings.Count(*one, "/") != 1 {
		return fmt.Errorf("--service %q: use namespace/name", *one)
	}
	body, err := get(ctx, *socket, "/v1/services?service="+url.QueryEscape(*one))
	if err == nil {
		_, err = out.Write(body)
	}
	return err
}

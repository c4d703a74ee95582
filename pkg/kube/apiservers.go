package kube

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/state"
)

// ServiceName is the name of the mesh API servers' Service.
const ServiceName = "clustermesh-apiserver"

// APIServer is one address of a mesh API server's pod, by "host:port".
type APIServer struct {
	Node  string
	Ready bool
}

// RunAPIServers keeps table equal to the endpoints of our Service
// clustermesh-apiserver until ctx ends. It needs no Service to work.
func (c *Client) RunAPIServers(ctx context.Context, log *slog.Logger, table *state.Table[string, APIServer]) error {
	selector := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + ServiceName}
	return follow(ctx, log, c.DiscoveryV1().EndpointSlices(c.Namespace), selector,
		&rowStore[*discoveryv1.EndpointSlice, string, APIServer]{name: "apiservers", table: table, rows: apiServers})
}

func apiServers(s *discoveryv1.EndpointSlice) map[string]APIServer {
	out := map[string]APIServer{}
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return out
	}
	for _, port := range s.Ports {
		if port.Port == nil {
			continue
		}
		for _, e := range s.Endpoints {
			row := APIServer{Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
			if e.NodeName != nil {
				row.Node = *e.NodeName
			}
			for _, a := range e.Addresses {
				out[net.JoinHostPort(a, strconv.Itoa(int(*port.Port)))] = row
			}
		}
	}
	return out
}

// Dialable lists the addresses to try, ready ones first, each group sorted.
func Dialable(rows map[string]APIServer) []string {
	var ready, rest []string
	for a, r := range rows {
		if r.Ready {
			ready = append(ready, a)
		} else {
			rest = append(rest, a)
		}
	}
	slices.Sort(ready)
	slices.Sort(rest)
	return append(ready, rest...)
}

// Exposure is how our Service can be reached from outside.
type Exposure struct {
	Port     uint16
	NodePort uint16
	Ingress  string // addresses or names of the load balancer, separated by spaces
}

// RunExposure keeps table equal to our Service clustermesh-apiserver until ctx ends.
func (c *Client) RunExposure(ctx context.Context, log *slog.Logger, table *state.Table[string, Exposure]) error {
	selector := metav1.ListOptions{FieldSelector: "metadata.name=" + ServiceName}
	return follow(ctx, log, c.CoreV1().Services(c.Namespace), selector,
		&rowStore[*corev1.Service, string, Exposure]{name: "service", table: table,
			rows: func(s *corev1.Service) map[string]Exposure { return one(s.Name, exposure(s)) }})
}

func exposure(s *corev1.Service) Exposure {
	var e Exposure
	if len(s.Spec.Ports) > 0 {
		e.Port, e.NodePort = uint16(s.Spec.Ports[0].Port), uint16(s.Spec.Ports[0].NodePort)
	}
	var hosts []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if h := i.IP + i.Hostname; h != "" {
			hosts = append(hosts, h)
		}
	}
	e.Ingress = strings.Join(hosts, " ")
	return e
}

package mcs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// maxExportBytes is what peers take of an export (pkg/mesh).
const maxExportBytes = 32 << 10

// Check says what is wrong with an export: what no Kubernetes object can hold, or
// would read as something of ours. Such an export takes no part, in no cluster.
func Check(k model.ServiceKey, e wire.Export) error {
	if m := append(validation.IsDNS1123Label(k.Namespace), validation.IsDNS1123Label(k.Name)...); len(m) > 0 {
		return fmt.Errorf("%q can't be the name of a Service: %s", k, m[0])
	}
	return errors.Join(checkShape(e), checkPorts(e.Ports), checkMeta("label", e.Labels), checkMeta("annotation", e.Annotations))
}

func checkShape(e wire.Export) error {
	var errs []error
	oneOf := func(field, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			errs = append(errs, fmt.Errorf("%s %q is not one of %q", field, value, allowed))
		}
	}
	if e.CreatedMilli == 0 {
		errs = append(errs, errors.New("it has no creation time"))
	}
	oneOf("type", e.Type, ClusterSetIP, Headless)
	oneOf("sessionAffinity", e.SessionAffinity, "", "None", "ClientIP")
	oneOf("internalTrafficPolicy", e.InternalPolicy, "", "Cluster", "Local")
	if e.AffinitySeconds > 86400 {
		errs = append(errs, fmt.Errorf("session affinity of %d s is over 86400", e.AffinitySeconds))
	}
	if n := len(e.IPFamilies); n == 0 || n == 2 && e.IPFamilies[0] == e.IPFamilies[1] {
		errs = append(errs, fmt.Errorf("ipFamilies %q are not one or two different ones", e.IPFamilies))
	}
	for _, f := range e.IPFamilies {
		oneOf("ipFamilies", f, IPv4, IPv6)
	}
	if e.Type == ClusterSetIP && len(e.Ports) == 0 {
		errs = append(errs, errors.New("it has no ports"))
	}
	return errors.Join(errs...)
}

// The families as Kubernetes writes them.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

func checkPorts(ports []wire.Port) error {
	if len(ports) > maxPorts {
		return fmt.Errorf("more than %d ports", maxPorts)
	}
	var errs []error
	for i, p := range ports {
		switch {
		case p.Port == 0 || protocols[p.Protocol] == "":
			errs = append(errs, fmt.Errorf("port %q has number %d, protocol %d", p.Name, p.Port, p.Protocol))
		case p.Name != "" && len(validation.IsDNS1123Label(p.Name)) > 0:
			errs = append(errs, fmt.Errorf("port name %q is not a DNS label", p.Name))
		case p.AppProtocol != "" && len(validation.IsQualifiedName(p.AppProtocol)) > 0:
			errs = append(errs, fmt.Errorf("appProtocol %q is not a label's name", p.AppProtocol))
		case slices.ContainsFunc(ports[:i], func(q wire.Port) bool { return q.Name == p.Name || number(q) == number(p) }):
			errs = append(errs, fmt.Errorf("port %s has the name or the number of another one", portText(p)))
		}
	}
	return errors.Join(errs...)
}

// reserved are the beginnings of keys by which objects are known as ours, or
// mean something to Kubernetes and to the MCS API.
var reserved = []string{"clustermesh.io/", "multicluster.kubernetes.io/", "multicluster.x-k8s.io/", "app.kubernetes.io/managed-by", "kubectl.kubernetes.io/"}

func checkMeta(what string, m map[string]string) error {
	var errs []error
	for k, v := range m {
		key := k
		if what == "annotation" {
			key = strings.ToLower(k)
		}
		switch {
		case len(validation.IsQualifiedName(key)) > 0:
			errs = append(errs, fmt.Errorf("exported %s %q is not a valid key", what, k))
		case what == "label" && len(validation.IsValidLabelValue(v)) > 0:
			errs = append(errs, fmt.Errorf("exported label %s: %q is not a valid value", k, v))
		case slices.ContainsFunc(reserved, func(r string) bool { return strings.HasPrefix(k, r) }):
			errs = append(errs, fmt.Errorf("exported %s %q is reserved", what, k))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// protocols are the names of protocols that Services have.
var protocols = map[uint8]string{6: "TCP", 17: "UDP", 132: "SCTP"}

// portNumber is what no two ports of a Service share beside their names.
type portNumber struct {
	protocol uint8
	port     uint16
}

func number(p wire.Port) portNumber { return portNumber{p.Protocol, p.Port} }

func portText(p wire.Port) string {
	text := fmt.Sprintf("%s %d", protocols[p.Protocol], p.Port)
	if p.Name != "" {
		text = p.Name + " " + text
	}
	if p.AppProtocol != "" {
		text += " (" + p.AppProtocol + ")"
	}
	return text
}

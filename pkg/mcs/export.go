package mcs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// own is what our cluster says of one of its Services.
type own struct {
	claim  string       // encoding of the wire.Export; empty: it is not exported
	shared string       // encoding of the wire.Service; empty: it is not shared
	status ExportStatus // of the ServiceExport; zero: there is none
}

// ownOf says what we export of a Service (N6, N8, N9), if it and its
// ServiceExport are there.
func ownOf(k model.ServiceKey, s *Service, x *Export) own {
	var o own
	var spec wire.Export
	var err error
	if s != nil {
		spec, err = wire.DecodeExport([]byte(s.Spec))
		if s.Global.Shared && !s.ExternalName && err == nil {
			o.shared = string(wire.Service{Ports: spec.Ports, Headless: spec.Type == Headless, AffinitySeconds: spec.AffinitySeconds}.Encode())
		}
	}
	if x == nil {
		return o
	}
	valid := func(status, reason, message string) { o.status.Valid = Condition{TypeValid, status, reason, message} }
	ready := func(status, reason, message string) { o.status.Ready = Condition{TypeReady, status, reason, message} }
	switch {
	case s == nil:
		valid(conditionFalse, ReasonNoService, fmt.Sprintf("there is no Service %s; create it, or delete the ServiceExport", k))
		ready(conditionFalse, ReasonPending, "it waits for the Service")
		return o
	case s.ExternalName:
		valid(conditionFalse, ReasonInvalidType, fmt.Sprintf("Service %s is of type ExternalName, which can't be exported; delete the ServiceExport", k))
		ready(conditionFalse, ReasonFailed, "the Service has no backends of its own")
		return o
	}
	valid(conditionTrue, ReasonValid, "the Service can be exported")
	if err == nil {
		o.claim, err = claimOf(k, spec, *x)
	}
	if err != nil {
		ready(conditionFalse, ReasonFailed, oneLine(err))
		return o
	}
	ready(conditionTrue, ReasonExported, "the other clusters can see it")
	return o
}

// claimOf puts together what the Service and what the ServiceExport say.
func claimOf(k model.ServiceKey, spec wire.Export, x Export) (string, error) {
	meta := wire.Export{}
	if x.Meta != "" {
		var err error
		if meta, err = wire.DecodeExport([]byte(x.Meta)); err != nil {
			return "", err
		}
	}
	spec.CreatedMilli, spec.Labels, spec.Annotations = x.CreatedMilli, meta.Labels, meta.Annotations
	if err := Check(k, spec); err != nil {
		return "", err
	}
	text := string(spec.Encode())
	if len(text) > maxExportBytes {
		return "", fmt.Errorf("export of %d bytes is over %d; export fewer annotations", len(text), maxExportBytes)
	}
	return text, nil
}

// sliceAbroad is what others are told of a slice of ours: without what is about
// our nodes, and without endpoints that are no pods of ours, for whose sake peers
// would refuse the slice. left is one of these, if there is any.
func sliceAbroad(s wire.Slice, pods []netip.Prefix) (text string, left netip.Addr) {
	s.Endpoints = slices.DeleteFunc(abroad(s.Endpoints), func(e wire.SliceEndpoint) bool {
		if len(pods) == 0 || slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(e.Addr) }) {
			return false
		}
		left = e.Addr
		return true
	})
	s.Source = ""
	return string(s.Encode()), left
}

// Grants are the rows that say what each peer may read of us, by the part of
// their keys behind wire.ExportPrefix. A peer without one may read everything.
func Grants(peers map[string]Peer) map[string]string {
	out := map[string]string{}
	for name, p := range peers {
		if p.Export != "" {
			out[wire.GrantTail(name).String()] = string(wire.Grant{Namespaces: strings.Fields(p.Export)}.Encode())
		}
	}
	return out
}

package main

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/pki"
)

// link is one direction of a connection: the Peer object in one cluster that speaks of another.
type link struct {
	in        *member
	context   string // of in
	cluster   string // in's name
	of        clusterFacts
	endpoints []string
	given     bool           // the endpoints were given by the user, who expects them to be used
	have      *v1alpha1.Peer // nil: not connected yet
}

// object is what is applied: only the fields that connect decides. All else in a Peer stays its owner's.
func (l link) object() *unstructured.Unstructured {
	return peerObject(l.of.Name, l.endpoints, l.of.CABundle, texts(l.of.PodCIDRs))
}

// previous is what undoes an apply over a Peer that was there.
func (l link) previous() *unstructured.Unstructured {
	spec := l.have.Spec
	return peerObject(l.of.Name, spec.Endpoints, spec.Trust.CABundle, spec.Import.PodCIDRs)
}

func peerObject(name string, endpoints []string, caBundle string, podCIDRs []string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(),
		"kind":       "Peer",
		"metadata":   map[string]any{"name": name},
		"spec": map[string]any{
			"endpoints": anyList(endpoints),
			"trust":     map[string]any{"caBundle": caBundle},
			"import":    map[string]any{"podCIDRs": anyList(podCIDRs)},
		},
	}}
}

// manifest is the object for a repository, with where it belongs.
func (l link) manifest() (string, error) {
	body, err := yaml.Marshal(l.object().Object)
	if err != nil {
		return "", fmt.Errorf("print peer %s: %w", l.of.Name, err)
	}
	return fmt.Sprintf("---\n# For cluster %s (context %s): its link to %s.\n%s", l.cluster, l.context, l.of.Name, body), nil
}

// change is a field of an existing Peer that differs from what the cluster says of itself now.
type change struct {
	field          string
	removed, added []string
	breaks         bool // the link can't work without it
}

// changes compares the Peer that is there with the one that connect would make. A Peer may allow more than the cluster
// has: somebody wanted it so.
func (l link) changes() []change {
	if l.have == nil {
		return nil
	}
	var found []change
	spec := l.have.Spec
	if c := listChange("spec.endpoints", spec.Endpoints, l.endpoints); c != nil && (l.given || !shareOne(spec.Endpoints, l.endpoints)) {
		c.breaks = l.given
		found = append(found, *c)
	}
	if c := listChange("spec.trust.caBundle", fingerprints(spec.Trust.CABundle), fingerprints(l.of.CABundle)); c != nil {
		c.breaks = len(c.added) > 0
		found = append(found, *c)
	}
	have := prefixes(spec.Import.PodCIDRs)
	if len(uncovered(l.of.PodCIDRs, have)) > 0 {
		found = append(found, *listChange("spec.import.podCIDRs", texts(have), texts(l.of.PodCIDRs)))
	}
	return found
}

// listChange is nil if both lists hold the same.
func listChange(field string, old, wanted []string) *change {
	missing := func(from, in []string) []string {
		return slices.DeleteFunc(slices.Clone(from), func(s string) bool { return slices.Contains(in, s) })
	}
	c := change{field: field, removed: missing(old, wanted), added: missing(wanted, old)}
	if len(c.removed)+len(c.added) == 0 {
		return nil
	}
	return &c
}

func shareOne(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// diff prints changes as lines for people.
func diff(changes []change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "    %s\n", c.field)
		for _, s := range c.removed {
			fmt.Fprintf(&b, "      - %s\n", s)
		}
		for _, s := range c.added {
			fmt.Fprintf(&b, "      + %s\n", s)
		}
	}
	return b.String()
}

// fingerprints name the certificates of a bundle so that people can compare them; what can't be read has its own.
func fingerprints(bundle string) []string {
	certs, err := pki.ParseBundle([]byte(bundle))
	if err != nil {
		return []string{fmt.Sprintf("unreadable: %v", err)}
	}
	out := make([]string, len(certs))
	for i, c := range certs {
		sum := sha256.Sum256(c.Raw)
		out[i] = fmt.Sprintf("CA %s, SHA-256 %x…, until %s", c.Subject.CommonName, sum[:8], c.NotAfter.UTC().Format("2006-01-02"))
	}
	return out
}

// checkChanges says what a plain connect does about a Peer that is there: it never widens what somebody consented to.
func (l link) checkChanges(refresh string) []problem {
	var problems []problem
	for _, c := range l.changes() {
		problems = append(problems, problem{Object: fmt.Sprintf("peer %s in context %s", l.of.Name, l.context), Warning: !c.breaks,
			What:   fmt.Sprintf("%s is not what %s says of itself (%s)", c.field, l.of.Name, summary(c)),
			Remedy: "review and apply it with `" + refresh + "`"})
	}
	return problems
}

func summary(c change) string {
	var parts []string
	if len(c.removed) > 0 {
		parts = append(parts, "no longer "+strings.Join(c.removed, ", "))
	}
	if len(c.added) > 0 {
		parts = append(parts, "now also "+strings.Join(c.added, ", "))
	}
	return strings.Join(parts, "; ")
}

func existingPeer(peers []v1alpha1.Peer, name string) *v1alpha1.Peer {
	for i := range peers {
		if peers[i].Name == name {
			return &peers[i]
		}
	}
	return nil
}

// checkEndpoint checks a HOST:PORT that the user gave.
func checkEndpoint(flag, endpoint string) error {
	host, text, err := net.SplitHostPort(endpoint)
	port, badPort := strconv.ParseUint(text, 10, 16)
	_, badAddr := netip.ParseAddr(host)
	badName := len(validation.IsDNS1123Subdomain(strings.ToLower(host))) > 0
	if err != nil || badPort != nil || port == 0 || badAddr != nil && badName {
		return fmt.Errorf("%s %q: give HOST:PORT, for example 192.0.2.10:7473, [2001:db8::10]:7473 or mesh.example.com:7473", flag, endpoint)
	}
	return nil
}

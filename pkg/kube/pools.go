package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/state"
)

// RequestAnnotation asks for addresses out of pools, separated by commas.
const RequestAnnotation = "clustermesh.io/load-balancer-ips"

// conditionAddress is the mark of Services that have addresses from us. It is
// written in one patch with the addresses and names them, so that whoever reads
// the Service knows which ones are ours, also where others were added or ours
// were replaced.
const conditionAddress = "clustermesh.io/LoadBalancerAddress"

// RunPools keeps table equal to the cluster's LoadBalancerPools until ctx ends;
// one that is being deleted counts as gone.
func (c *Client) RunPools(ctx context.Context, log *slog.Logger, table *state.Table[string, lbpool.Pool]) error {
	return follow(ctx, log, c.Pools, metav1.ListOptions{}, &rowStore[*v1alpha1.LoadBalancerPool, string, lbpool.Pool]{
		name: "loadbalancerpools", table: table,
		rows: func(p *v1alpha1.LoadBalancerPool) map[string]lbpool.Pool {
			if p.DeletionTimestamp != nil {
				return nil
			}
			return one(p.Name, PoolRow(p))
		},
	})
}

// PoolRow is the row of a pool: everything but its status.
func PoolRow(p *v1alpha1.LoadBalancerPool) lbpool.Pool {
	row := lbpool.Pool{UID: string(p.UID), Generation: p.Generation, CreatedUnix: p.CreationTimestamp.Unix(),
		Disabled: p.Spec.Disabled, Silent: p.Spec.Announce.Enabled != nil && !*p.Spec.Announce.Enabled}
	ranges := make([][2]string, 0, len(p.Spec.Ranges))
	for _, r := range p.Spec.Ranges {
		ranges = append(ranges, [2]string{r.Start, r.Stop})
	}
	blocks, err1 := lbpool.ParseSpec(p.Spec.CIDRs, ranges)
	services, err2 := selectorText("spec.serviceSelector", p.Spec.ServiceSelector)
	nodes, err3 := selectorText("spec.announce.nodeSelector", p.Spec.Announce.NodeSelector)
	row.Blocks, row.Services, row.Nodes = blocks, services, nodes
	if err := cmp.Or(err1, err2, err3); err != nil {
		row.Invalid = err.Error()
	}
	return row
}

// selectorText writes a selector as rows hold it; nil and empty ones choose
// everything.
func selectorText(field string, s *metav1.LabelSelector) (string, error) {
	if s == nil {
		return "", nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	return selector.String(), nil
}

// RunBalanced keeps table equal to the Services that are of type LoadBalancer,
// or have addresses from us, until ctx ends.
func (c *Client) RunBalanced(ctx context.Context, log *slog.Logger, table *state.Table[lbpool.Key, lbpool.Service]) error {
	return follow(ctx, log, c.CoreV1().Services(metav1.NamespaceAll), metav1.ListOptions{}, balancedStore(table))
}

func balancedStore(table *state.Table[lbpool.Key, lbpool.Service]) store[*corev1.Service] {
	return &rowStore[*corev1.Service, lbpool.Key, lbpool.Service]{name: "services", table: table, rows: func(s *corev1.Service) map[lbpool.Key]lbpool.Service {
		row := BalancedRow(s)
		if !row.Concerned() {
			return nil
		}
		return one(lbpool.Key{Namespace: s.Namespace, Name: s.Name}, row)
	}}
}

// BalancedRow is what pools need to know of a Service.
func BalancedRow(s *corev1.Service) lbpool.Service {
	class := s.Spec.LoadBalancerClass
	row := lbpool.Service{
		UID: string(s.UID), CreatedUnix: s.CreationTimestamp.Unix(), Labels: labels.FormatLabels(s.Labels),
		Balanced: s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil && (class == nil || *class == lbpool.Class),
		Local:    s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Ours:     ourAddresses(s),
	}
	if len(s.Labels) == 0 {
		row.Labels = "" // FormatLabels says <none>
	}
	for _, f := range s.Spec.IPFamilies {
		row.Families += map[corev1.IPFamily]string{corev1.IPv4Protocol: "4", corev1.IPv6Protocol: "6"}[f]
	}
	ours := strings.Fields(row.Ours)
	var others []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if text := cmp.Or(canonical(i.IP), i.IP, i.Hostname); text != "" && !slices.Contains(ours, text) {
			others = append(others, text)
		}
	}
	row.Others = strings.Join(others, " ")
	row.Torn = strings.Join(markedAddresses(s), " ") != row.Ours
	row.Request, row.Malformed = requested(s)
	return row
}

// requested reads the annotation, or the field that came before it.
func requested(s *corev1.Service) (addrs, malformed string) {
	var list, bad []string
	for _, text := range strings.Split(cmp.Or(s.Annotations[RequestAnnotation], s.Spec.LoadBalancerIP), ",") {
		text = strings.TrimSpace(text)
		if a := canonical(text); a != "" {
			list = append(list, a)
		} else if text != "" {
			bad = append(bad, text)
		}
	}
	return strings.Join(list, " "), strings.Join(bad, ",")
}

// canonical is an address as netip writes it, empty if text is none.
func canonical(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return ""
	}
	return a.Unmap().String()
}

// ourAddresses are those that our condition names and that are still there.
func ourAddresses(s *corev1.Service) string {
	var there model.Addrs
	marked := markedAddresses(s)
	for _, i := range s.Status.LoadBalancer.Ingress {
		if a := canonical(i.IP); slices.Contains(marked, a) {
			there = there.Add(netip.MustParseAddr(a))
		}
	}
	return lbpool.Join(there)
}

// markedAddresses are those that our condition names.
func markedAddresses(s *corev1.Service) []string {
	for _, c := range s.Status.Conditions {
		if c.Type == conditionAddress && c.Status == metav1.ConditionTrue {
			return strings.Fields(c.Message)
		}
	}
	return nil
}

// SetBalancerAddresses makes addrs the addresses that a Service has from us, and
// marks them; none takes them and the mark away. What others put into its
// status stays, unless it is one of addrs. A Service that is gone needs nothing.
func (c *Client) SetBalancerAddresses(ctx context.Context, key lbpool.Key, addrs model.Addrs) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := c.CoreV1().Services(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	if err != nil {
		return notFoundIsFine(fmt.Errorf("read Service %v: %w", key, err))
	}
	patch, err := balancerPatch(s, addrs)
	if err != nil || patch == nil {
		return err
	}
	_, err = c.CoreV1().Services(key.Namespace).Patch(ctx, key.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return notFoundIsFine(fmt.Errorf("set addresses of Service %v to %q: %w", key, lbpool.Join(addrs), err))
	}
	return nil
}

func notFoundIsFine(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// balancerPatch names the version that it was made for, since the list of
// addresses is replaced as a whole. It is nil if there is nothing to do.
func balancerPatch(s *corev1.Service, addrs model.Addrs) ([]byte, error) {
	want := lbpool.Join(addrs)
	marked := markedAddresses(s)
	if want == "" && len(marked) == 0 || want != "" && want == ourAddresses(s) && want == strings.Join(marked, " ") {
		return nil, nil
	}
	drop := append(strings.Fields(want), marked...)
	ingress := []corev1.LoadBalancerIngress{}
	mode := corev1.LoadBalancerIPModeVIP
	for _, a := range addrs.All() {
		ingress = append(ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP == "" || !slices.Contains(drop, canonical(i.IP)) {
			ingress = append(ingress, i)
		}
	}
	condition := map[string]any{"type": conditionAddress, "$patch": "delete"}
	if want != "" {
		condition = map[string]any{"type": conditionAddress, "status": metav1.ConditionTrue, "reason": "OutOfPool", "message": want,
			"lastTransitionTime": metav1.Now(), "observedGeneration": s.Generation}
	}
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.ResourceVersion, "uid": s.UID},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}, "conditions": []any{condition}},
	})
}

// ListBalanced reads the rows of RunBalanced from the API server itself.
func (c *Client) ListBalanced(ctx context.Context) (map[lbpool.Key]lbpool.Service, error) {
	out := map[lbpool.Key]lbpool.Service{}
	opts := metav1.ListOptions{Limit: 500}
	for {
		page, err := c.CoreV1().Services(metav1.NamespaceAll).List(ctx, opts)
		if err != nil {
			return nil, fmt.Errorf("list Services: %w", err)
		}
		for i := range page.Items {
			s := &page.Items[i]
			if row := BalancedRow(s); row.Concerned() {
				out[lbpool.Key{Namespace: s.Namespace, Name: s.Name}] = row
			}
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			return out, nil
		}
	}
}

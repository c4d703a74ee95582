package balancer

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/lbpool"
)

// poolStatus is what the status of a pool says.
type poolStatus struct {
	Generation int64
	lbpool.PoolState
}

// states is what pools should say. Nothing is taken from a pool that is gone.
func (c *Controller) states() (map[string]poolStatus, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]poolStatus{}
	if c.result == nil {
		return out, false
	}
	for name, st := range c.result.Pools {
		if row, there := c.opt.Pools.Get(name); there {
			out[name] = poolStatus{row.Generation, st}
		}
	}
	return out, false
}

// pools is the target for the status of pools.
type pools struct{ *Controller }

// List implements reconcile.Target.
func (p pools) List(ctx context.Context) (map[string]poolStatus, error) {
	list, err := p.opt.Client.Pools.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list LoadBalancerPools: %w", err)
	}
	out := map[string]poolStatus{}
	for i := range list.Items {
		if st, ok := readStatus(list.Items[i].Status); ok {
			out[list.Items[i].Name] = st
		}
	}
	return out, nil
}

func readStatus(s v1alpha1.LoadBalancerPoolStatus) (poolStatus, bool) {
	ready := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
	if ready == nil {
		return poolStatus{}, false
	}
	out := poolStatus{s.ObservedGeneration, lbpool.PoolState{Capacity4: s.Capacity.IPv4, Capacity6: s.Capacity.IPv6, Used4: s.Used.IPv4, Used6: s.Used.IPv6}}
	if ready.Status != metav1.ConditionTrue {
		out.Reason, out.Message = ready.Reason, ready.Message
	}
	return out, true
}

// Apply implements reconcile.Target.
func (p pools) Apply(ctx context.Context, set map[string]poolStatus, _ []string) map[string]error {
	failed := map[string]error{}
	for name, st := range set {
		if err := p.write(ctx, name, st); err != nil {
			failed[name] = fmt.Errorf("write status of LoadBalancerPool %s: %w", name, err)
		}
	}
	return failed
}

func (p pools) write(ctx context.Context, name string, st poolStatus) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	object, err := p.opt.Client.Pools.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	next := v1alpha1.LoadBalancerPoolStatus{ObservedGeneration: st.Generation, Conditions: object.Status.Conditions,
		Capacity: v1alpha1.FamilyCounts{IPv4: st.Capacity4, IPv6: st.Capacity6}, Used: v1alpha1.FamilyCounts{IPv4: st.Used4, IPv6: st.Used6}}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: st.Generation}
	if st.Reason != "" {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, st.Reason, st.Message
	}
	meta.SetStatusCondition(&next.Conditions, ready)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": object.ResourceVersion}, "status": next})
	if err != nil {
		return err
	}
	_, err = p.opt.Client.Pools.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

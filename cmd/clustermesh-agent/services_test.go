package main

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/config"
	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
	"github.com/clustermesh/clustermesh/pkg/state"
)

type fronts = map[service.FrontKey]service.Front

// TestPublish (invariant V4): changes of the plan reach both layers, each with what
// it can do; nothing may be deleted before the first; with kube-proxy kept there
// are rules only while a pod has host ports.
func TestPublish(t *testing.T) {
	rules := service.FrontKey{}
	a := service.FrontKey{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: 6, Port: 80}
	to, _ := service.Spread([]service.Backend{{AddrPort: netip.MustParseAddrPort("10.1.0.1:80"), Weight: 1}})
	forward, reject := service.Front{Slots: to}, service.Front{Verdict: service.Reject}
	steps := []*service.Patch{
		{Set: fronts{}},
		{Set: fronts{a: forward}, Total: 1},
		{Set: fronts{a: reject}, Total: 1},
		{Set: fronts{a: forward}, Total: 1},
		{Set: fronts{}, Del: []service.FrontKey{a}},
	}
	for _, tt := range []struct {
		mode       string
		nft, fasts []fronts // after each step
	}{
		{config.KubeProxyReplace,
			[]fronts{{rules: {}}, {rules: {}, a: forward}, {rules: {}, a: reject}, {rules: {}, a: forward}, {rules: {}}},
			[]fronts{{rules: {}}, {rules: {}, a: forward}, {rules: {}}, {rules: {}, a: forward}, {rules: {}}}},
		{config.KubeProxyKeep,
			[]fronts{{}, {rules: {}, a: forward}, {rules: {}, a: reject}, {rules: {}, a: forward}, {}}, nil},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			s := &services{fronts: state.New[service.FrontKey, service.Front](), change: &fanout{}, fast: &sockets{fronts: state.New[service.FrontKey, service.Front]()}}
			s.cfg.Services.KubeProxy = tt.mode
			if tt.fasts != nil {
				s.fast.loop = reconcile.NewTableLoop("fast", nil, s.fast.fronts, s.orphans, reconcile.Options{})
			}
			if s.orphans()(a) {
				t.Fatal("rows may be deleted before anything is known")
			}
			for i, p := range steps {
				s.publish(p, 0)
				if got := s.fronts.Rows(); !maps.Equal(got, tt.nft[i]) {
					t.Errorf("step %d: nftables gets %v, want %v", i, got, tt.nft[i])
				}
				if tt.fasts != nil && !maps.Equal(s.fast.fronts.Rows(), tt.fasts[i]) {
					t.Errorf("step %d: sockets get %v, want %v", i, s.fast.fronts.Rows(), tt.fasts[i])
				}
				if !s.orphans()(a) {
					t.Errorf("step %d: orphans may not go", i)
				}
			}
		})
	}
}

package podnet

import (
	"fmt"

	"github.com/clustermesh/clustermesh/pkg/ipam"
	"github.com/clustermesh/clustermesh/pkg/status"
)

// report puts the state of the address pools on the board and in the metrics.
func (s *Server) report() {
	s.mu.Lock()
	usage, outside := s.alloc.Usage(), len(s.alloc.Outside())
	if len(s.alloc.Prefixes().All()) == 0 {
		outside = 0
	}
	s.mu.Unlock()
	for _, u := range usage {
		s.reportUsage(u)
	}
	key := status.Key{Component: "ipam", Object: "old pod CIDR"}
	if outside == 0 {
		s.opt.Board.Clear(key)
		return
	}
	s.opt.Board.Set(key, status.Info, fmt.Sprintf("%d pods have addresses outside of this node's pod CIDRs", outside),
		"other nodes have no route to them; restart these pods")
}

func (s *Server) reportUsage(u ipam.Usage) {
	level, remedy := status.OK, ""
	if u.Used >= u.Capacity {
		level, remedy = status.Degraded, "delete pods of this node, or give nodes a larger pod CIDR"
	}
	s.opt.Board.Set(status.Key{Component: "ipam", Object: u.Prefix.String()}, level,
		fmt.Sprintf("%d of %d addresses in use", u.Used, u.Capacity), remedy)
	s.opt.Metrics.addresses(u)
}

package etcdserver

import (
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	type step struct {
		after   time.Duration
		rev     int64
		compact int64 // 0: nothing
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"quiet", []step{{0, 10, 0}, {time.Hour, 20, 0}, {2 * time.Hour, 30, 0}}},
		{"slow", []step{{0, 6000, 0}, {9 * time.Minute, 7000, 0}, {10 * time.Minute, 7100, 6000}, {20 * time.Minute, 8000, 0}}},
		{"burst", []step{{0, 10, 0}, {10 * time.Second, 24000, 0}, {20 * time.Second, 30000, 10000}, {30 * time.Second, 30001, 0}}},
		{"opened with much history", []step{{0, 100000, 80000}, {10 * time.Second, 100001, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h history
			begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			for i, s := range tt.steps {
				got, ok := h.next(begin.Add(s.after), s.rev)
				if got != s.compact || ok != (s.compact != 0) {
					t.Errorf("step %d: compact to %d (%v), want %d", i, got, ok, s.compact)
				}
			}
		})
	}
}

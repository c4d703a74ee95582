package peers

import (
	"testing"
	"time"
)

// TestDue: a change is due at its place in the order, not when the one before it
// is done.
func TestDue(t *testing.T) {
	began := time.Unix(100, 0)
	for name, c := range map[string]struct {
		rate, i int
		want    time.Duration
	}{
		"first":       {1000, 0, 0},
		"in between":  {1000, 7, 7 * time.Millisecond},
		"last":        {1000, 9999, 9999 * time.Millisecond},
		"all at once": {0, 9999, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Order{Rate: c.rate}).due(began, c.i).Sub(began); got != c.want {
				t.Errorf("due after %v, want %v", got, c.want)
			}
		})
	}
}

// TestPerSecond: the time that the last write takes is no missed rate, a late
// writer is.
func TestPerSecond(t *testing.T) {
	for name, c := range map[string]struct {
		took time.Duration
		want float64
	}{
		"in time": {9999*time.Millisecond + 2*time.Millisecond, 1000},
		"late":    {12500 * time.Millisecond, 800},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Unix(100, 0)
			if got := (Answer{Began: began, Ended: began.Add(c.took)}).PerSecond(10000); got != c.want {
				t.Errorf("%v a second, want %v", got, c.want)
			}
		})
	}
}

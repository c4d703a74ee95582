package state

import (
	"maps"
	"testing"
)

type rows = map[string]int

// TestClaims walks a table through what sources do and checks the rows that
// readers see (invariants S1, S2).
func TestClaims(t *testing.T) {
	tests := []struct {
		name   string
		do     func(*Table[string, int])
		want   rows
		synced bool
	}{
		{"empty table expects nobody", func(*Table[string, int]) {}, rows{}, true},
		{"expected source has not reported", func(t *Table[string, int]) { t.Expect("a"); t.Update("a", rows{"x": 1}, nil) }, rows{"x": 1}, false},
		{"one of two has reported", func(t *Table[string, int]) { t.Expect("a", "b"); t.Replace("a", rows{"x": 1}) }, rows{"x": 1}, false},
		{"an empty list is a report", func(t *Table[string, int]) { t.Expect("a"); t.Replace("a", nil) }, rows{}, true},
		{"expecting again does not forget", func(t *Table[string, int]) { t.Expect("a"); t.Replace("a", nil); t.Expect("a") }, rows{}, true},
		{"replace drops what the list lacks", func(t *Table[string, int]) { t.Update("a", rows{"x": 1, "y": 2}, nil); t.Replace("a", rows{"y": 3}) }, rows{"y": 3}, true},
		{"smallest source wins", func(t *Table[string, int]) { t.Update("b", rows{"x": 2}, nil); t.Update("a", rows{"x": 1}, nil) }, rows{"x": 1}, true},
		{"the loser shows when the winner goes", func(t *Table[string, int]) {
			t.Update("b", rows{"x": 2}, nil)
			t.Update("a", rows{"x": 1}, nil)
			t.Update("a", nil, []string{"x"})
		}, rows{"x": 2}, true},
		{"drop forgets a source and its lateness", func(t *Table[string, int]) {
			t.Expect("a", "b")
			t.Replace("b", rows{"x": 2})
			t.Update("a", rows{"x": 1}, nil)
			t.Drop("a")
		}, rows{"x": 2}, true},
		{"deleting what is not there", func(t *Table[string, int]) { t.Update("a", nil, []string{"x"}) }, rows{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := New[string, int]()
			tt.do(table)
			got, synced := table.Snapshot()
			if !maps.Equal(got, tt.want) || synced != tt.synced {
				t.Errorf("Snapshot() = %v, %v; want %v, %v", got, synced, tt.want, tt.synced)
			}
			for k, v := range tt.want {
				if got, ok := table.Get(k); !ok || got != v {
					t.Errorf("Get(%q) = %d, %v; want %d", k, got, ok, v)
				}
			}
		})
	}
}

// TestWake: a wake-up is left by every change, and by nothing else.
func TestWake(t *testing.T) {
	table := New[string, int]()
	c := table.Subscribe()
	woken := func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if !woken() {
		t.Error("a new subscriber is not woken")
	}
	steps := []struct {
		name string
		do   func()
		want bool
	}{
		{"new row", func() { table.Update("a", rows{"x": 1}, nil) }, true},
		{"same row", func() { table.Update("a", rows{"x": 1}, nil) }, false},
		{"changed row", func() { table.Update("a", rows{"x": 2}, nil) }, true},
		{"first list, same rows: now synced", func() { table.Replace("a", rows{"x": 2}) }, true},
		{"same list", func() { table.Replace("a", rows{"x": 2}) }, false},
		{"two changes, one wake-up", func() { table.Update("a", rows{"x": 3}, nil); table.Update("a", rows{"x": 4}, nil) }, true},
		{"deleted row", func() { table.Update("a", nil, []string{"x"}) }, true},
		{"deleted again", func() { table.Update("a", nil, []string{"x"}) }, false},
		{"drop", func() { table.Drop("a") }, true},
		{"drop of nobody", func() { table.Drop("a") }, false},
	}
	for _, s := range steps {
		s.do()
		if got := woken(); got != s.want {
			t.Errorf("%s: woken %v, want %v", s.name, got, s.want)
		}
		woken()
	}
}

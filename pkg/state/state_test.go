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

// TestFollow: a follower sees every row that differs from what it has seen, once,
// whichever way it came to differ.
func TestFollow(t *testing.T) {
	table := New[string, int]()
	table.Update("b", rows{"x": 1, "y": 1}, nil)
	c := table.Follow()
	seen := rows{}
	take := func() (n int) {
		set, del, _ := c.Take()
		maps.Copy(seen, set)
		for _, k := range del {
			delete(seen, k)
		}
		return len(set) + len(del)
	}
	for _, step := range []struct {
		name string
		do   func()
		want int
	}{
		{"all rows at first", func() {}, 2},
		{"nothing", func() {}, 0},
		{"a change and a deletion", func() { table.Update("b", rows{"x": 2}, []string{"y"}) }, 2},
		{"the same again", func() { table.Update("b", rows{"x": 2}, []string{"y"}) }, 0},
		{"another source wins", func() { table.Update("a", rows{"x": 3}, nil) }, 1},
		{"a list", func() { table.Replace("b", rows{"x": 2, "z": 1}) }, 1},
		{"the winner goes", func() { table.Drop("a") }, 1},
		{"twice and back", func() { table.Update("b", rows{"z": 2}, nil); table.Update("b", rows{"z": 1}, nil) }, 1},
	} {
		step.do()
		if got := take(); got != step.want {
			t.Errorf("%s: took %d rows, want %d", step.name, got, step.want)
		}
		if want := table.Rows(); !maps.Equal(seen, want) {
			t.Errorf("%s: seen %v, the table holds %v", step.name, seen, want)
		}
	}
}

package mesh

import (
	"fmt"
	"testing"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/kvstore"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

var noLimits v1alpha1.Limits

// mapStore is what CopySink would have written.
type mapStore map[string]bool

func (m mapStore) Count(k wire.Kind) (n int) {
	for key, held := range m {
		if held && kindOf(key) == k {
			n++
		}
	}
	return n
}
func (m mapStore) Size(key string) int {
	if m[key] {
		return 0 // all rows here are larger
	}
	return -1
}

func (m mapStore) take(rows []kvstore.Row) int {
	for _, r := range rows {
		m[r.Key] = true
	}
	return len(rows)
}

func TestRowLimit(t *testing.T) {
	r := east()
	r.Limits.Rows[wire.KindEndpoint] = 3
	store, again := mapStore{}, false
	a := NewAdmission(r, NewClaims(ourselves, func(string) {}), func() { again = true }, store)
	row := func(n int) kvstore.Row { return endpoint(fmt.Sprintf("10.2.0.%d", n)) }
	batch := func(n ...int) (rows []kvstore.Row) {
		for _, x := range n {
			rows = append(rows, row(x))
		}
		return rows
	}

	a.Begin(wire.KindEndpoint, true)
	if n := store.take(a.Admit(batch(1, 2))); n != 2 {
		t.Fatalf("list: %d admitted", n)
	}
	a.End(wire.KindEndpoint, true)
	for range 10 { // changes of a row that is there count for nothing
		if n := store.take(a.Admit(batch(1))); n != 1 {
			t.Fatal("a changed row is refused")
		}
	}
	if n := store.take(a.Admit(batch(3, 4, 5))); n != 1 {
		t.Fatalf("%d of three new rows admitted, want the one that has room", n)
	}
	if n := store.take(a.Admit(batch(2, 6))); n != 1 {
		t.Fatal("at the limit a changed row is admitted and a new one refused")
	}
	if got := a.Refused(); len(got) != 1 || got[0].Reason != string(OverLimit) || got[0].Count != 3 {
		t.Fatalf("refused: %+v", got)
	}
	if again {
		t.Fatal("listed again for nothing")
	}
	delete(store, row(1).Key)
	a.Gone(wire.KindEndpoint, []string{row(1).Key})
	if !again {
		t.Fatal("not listed again though there is room")
	}
}

func TestByteLimit(t *testing.T) {
	r := east()
	one := int64(len(endpoint("10.2.0.1").Key) + len(endpoint("10.2.0.1").Value))
	r.Limits.Bytes = 10 * one
	again := 0
	a := NewAdmission(r, NewClaims(ourselves, func(string) {}), func() { again++ }, mapStore{})
	list := func(n int) (admitted int) {
		a.Begin(wire.KindEndpoint, true)
		for i := range n {
			admitted += len(a.Admit([]kvstore.Row{endpoint(fmt.Sprintf("10.2.0.%d", i%10))}))
		}
		a.End(wire.KindEndpoint, true)
		return admitted
	}
	if n := list(20); n != 10 {
		t.Fatalf("a list of twice the size: %d rows admitted, want 10", n)
	}
	if n := list(10); n != 10 || a.Refused() != nil {
		t.Fatalf("%d rows admitted, refused %v", n, a.Refused())
	}
	// Changes are counted twice, which a new list puts right; until then nothing is withdrawn.
	for i := range 9 {
		if n := len(a.Admit([]kvstore.Row{endpoint(fmt.Sprintf("10.2.0.%d", i))})); n != 1 {
			t.Fatalf("change %d is refused", i)
		}
	}
	if again == 0 {
		t.Fatal("no new list is asked for")
	}
}

// TestUnendedLists: a peer can't get past its limits with lists that leave rows
// behind: given up before their end, or without a mark; nor by deleting what it
// never had.
func TestUnendedLists(t *testing.T) {
	for name, c := range map[string]struct {
		marked bool
		after  func(a *Admission, store mapStore)
	}{
		"given up":     {true, func(*Admission, mapStore) {}},
		"without mark": {false, func(a *Admission, _ mapStore) { a.End(wire.KindEndpoint, false) }},
		"bogus deletes": {true, func(a *Admission, store mapStore) {
			a.End(wire.KindEndpoint, true)
			for i := range 10 {
				a.Gone(wire.KindEndpoint, []string{"endpoint/a", "endpoint/b", "endpoint/c"})
				store.take(a.Admit([]kvstore.Row{endpoint(fmt.Sprintf("10.2.9.%d", i))}))
			}
		}},
	} {
		for what, limit := range map[string]func(l *Limits){
			"rows":  func(l *Limits) { l.Rows[wire.KindEndpoint] = 3 },
			"bytes": func(l *Limits) { l.Bytes = 3 * int64(len(endpoint("10.2.0.1").Key)+len(endpoint("10.2.0.1").Value)) },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				r, store := east(), mapStore{}
				limit(&r.Limits)
				a := NewAdmission(r, NewClaims(ourselves, func(string) {}), func() {}, store)
				for i := range 10 {
					a.Begin(wire.KindEndpoint, c.marked)
					for j := range 3 {
						store.take(a.Admit([]kvstore.Row{endpoint(fmt.Sprintf("10.2.%d.%d", i, j))}))
					}
					c.after(a, store)
					if name == "bogus deletes" {
						break // the list ended: the next one would replace it
					}
				}
				if n := len(store); n > 6 {
					t.Errorf("%d rows are kept, want no more than twice the limit", n)
				}
			})
		}
	}
}

// Memory for refused rows is bounded, and their count is right after a list.
func TestRefusedWithoutEnd(t *testing.T) {
	a := NewAdmission(east(), NewClaims(ourselves, func(string) {}), func() {}, noStore{})
	a.Begin(wire.KindEndpoint, true)
	for i := range 3 * maxNoted {
		a.Admit([]kvstore.Row{endpoint(fmt.Sprintf("10.3.%d.%d", i>>8&0xff, i&0xff))})
	}
	a.End(wire.KindEndpoint, true)
	if got := a.Refused(); len(got) != 1 || got[0].Count != 3*maxNoted {
		t.Fatalf("refused: %+v", got)
	}
	if n := len(a.ledger.noted); n > maxNoted {
		t.Fatalf("%d are noted", n)
	}
	a.Begin(wire.KindEndpoint, true)
	a.End(wire.KindEndpoint, true)
	if a.Refused() != nil || len(a.ledger.noted) != 0 {
		t.Fatalf("an empty list leaves %+v", a.Refused())
	}
}

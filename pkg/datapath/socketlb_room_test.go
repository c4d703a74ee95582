package datapath_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/reconcile"
	"github.com/clustermesh/clustermesh/pkg/service"
)

// leftOut has the target say what has no room.
func (s *sockets) leftOut() (n *int, why *string) {
	n, why = new(int), new(string)
	s.opt.Left = func(fronts int, err error) { *n, *why = fronts, fmt.Sprint(err) }
	s.restart()
	return n, why
}

// pass does what a loop does that lists, and returns what had to be set.
func (s *sockets) pass(wanted map[service.FrontKey]service.Front) map[service.FrontKey]service.Front {
	s.t.Helper()
	got, err := s.target.List(s.t.Context())
	must(s.t, err)
	set, del := reconcile.Delta(got, wanted)
	put(s.t, s.target, set, del)
	return set
}

// TestSocketLBFull (invariant V8): what has no room is told, is no failure, and
// finds room again once it is there.
func TestSocketLBFull(t *testing.T) {
	s := newSockets(t)
	left, why := s.leftOut()
	rows := together(programs)
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("10.9.%d.%d:80", i/250, i%250+1))
	}
	for i := range 6 { // 131,072 slots each, and there is room for 524,288
		rows[frontAt(fmt.Sprintf("10.96.1.%d:80", i+1), unix.IPPROTO_TCP)] = frontTo(many[i:]...)
	}
	s.pass(rows)
	if *left != 2 || !strings.Contains(*why, "full: slots holds 524288 elements") {
		t.Fatalf("told that %d fronts have no room: %s; want 2", *left, *why)
	}
	if set := s.pass(rows); len(set) != 3 || *left != 2 {
		t.Errorf("a second pass sets %d rows, and %d have no room; want the programs and 2", len(set), *left)
	}
	got, err := s.target.List(t.Context())
	must(t, err)
	gone := 0
	for k := range got {
		if gone++; gone <= 2 {
			delete(rows, k)
		}
	}
	s.pass(rows)
	if *left != 0 {
		t.Errorf("%d fronts have no room, though others are gone: %s", *left, *why)
	}
	shows(t, s.target, rows)
}

// fill puts elements into a map that mean nothing, until it is full.
func fill[K, V any](s *sockets, name string, key func(i uint32) K) {
	s.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(s.opt.Pins, name), nil)
	must(s.t, err)
	defer m.Close()
	keys, values := make([]K, 4096), make([]V, 4096)
	for n := uint32(0); err == nil; n += 4096 {
		for i := range keys {
			keys[i] = key(n + uint32(i))
		}
		_, err = m.BatchUpdate(keys, values, nil)
	}
	if !errors.Is(err, unix.E2BIG) {
		s.t.Fatal(err)
	}
}

func fillFronts(s *sockets) {
	fill[[24]byte, [12]byte](s, "fronts", func(i uint32) (k [24]byte) { binary.NativeEndian.PutUint32(k[:], ^i); return k })
}

func fillSlots(s *sockets) {
	fill[[8]byte, [20]byte](s, "slots", func(i uint32) (k [8]byte) { binary.NativeEndian.PutUint64(k[:], ^uint64(i)<<32|0xffffffff); return k })
}

// TestSocketLBFullChange (invariants V5, V8): where there is no room for its new
// backends a front does not go on leading to the old ones, and a change that
// needs no room finds its place.
func TestSocketLBFullChange(t *testing.T) {
	tcp := func(at string, backends ...string) map[service.FrontKey]service.Front {
		return map[service.FrontKey]service.Front{frontAt(at, unix.IPPROTO_TCP): frontTo(backends...)}
	}
	for _, tt := range []struct {
		name   string
		fill   func(*sockets)
		change map[service.FrontKey]service.Front
		a, b   string // who answers then at the two fronts
		left   int
	}{
		{"slots", fillSlots, together(tcp(frontA, three...), tcp(frontB, three[0])), frontA, three[0], 1},
		{"fronts", fillFronts, together(tcp(frontA, three[1]), tcp(frontB, three[0]), tcp("10.96.0.3:80", three[0]), tcp("10.96.0.4:80", three[0])), three[1], three[0], 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTalkers(t)
			left, _ := s.leftOut()
			before := together(programs, tcp(frontA, three[0]), tcp(frontB, three[1]))
			s.pass(before)
			tt.fill(s)
			put(t, s.target, tt.change, nil)
			a, _ := s.connect(unix.AF_INET, frontA)
			b, _ := s.connect(unix.AF_INET, frontB)
			if a != tt.a || b != tt.b || *left != tt.left {
				t.Errorf("goes to %s and %s, %d have no room; want %s and %s, %d", a, b, *left, tt.a, tt.b, tt.left)
			}
			s.pass(together(before, tt.change)) // takes out what nobody wants
			s.pass(together(before, tt.change))
			shows(t, s.target, together(before, tt.change))
		})
	}
}

// TestSocketLBStrays (invariant V8): a front that leads nowhere whole is taken
// out, also if nothing else has to be done.
func TestSocketLBStrays(t *testing.T) {
	s := newSockets(t)
	s.pass(programs)
	m, err := ebpf.LoadPinnedMap(filepath.Join(s.opt.Pins, "fronts"), nil)
	must(t, err)
	defer m.Close()
	must(t, m.Put(make([]byte, m.KeySize()), make([]byte, m.ValueSize())))
	s.pass(programs)
	var key, value []byte
	if m.Iterate().Next(&key, &value) {
		t.Errorf("%v leads to %v", key, value)
	}
	shows(t, s.target, programs)
}

// TestSocketLBScale loads Services with 10 backends each: 50,000 have room.
func TestSocketLBScale(t *testing.T) {
	for _, n := range []int{10_000, 50_000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := newSockets(t)
			left, why := s.leftOut()
			rows := together(programs)
			var keys []service.FrontKey
			for i := range n {
				var backends []string
				for b := range 10 {
					backends = append(backends, fmt.Sprintf("10.%d.%d.%d:8080", 100+b, i/250, i%250+1))
				}
				keys = append(keys, frontAt(fmt.Sprintf("10.96.%d.%d:80", i/250, i%250+1), unix.IPPROTO_TCP))
				rows[keys[i]] = frontTo(backends...)
			}
			began := time.Now()
			put(t, s.target, rows, nil)
			loaded := time.Since(began)
			if *left != 0 {
				t.Errorf("%d have no room: %s", *left, *why)
			}
			began = time.Now()
			got, err := s.target.List(t.Context())
			must(t, err)
			listed := time.Since(began)
			if !maps.Equal(got, rows) {
				t.Errorf("%d rows are held, want %d", len(got), len(rows))
			}
			var took []time.Duration
			for i := range 100 {
				began := time.Now()
				put(t, s.target, map[service.FrontKey]service.Front{keys[i]: frontTo(fmt.Sprintf("10.200.0.%d:80", i+1))}, nil)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("%d slots loaded in %v, listed in %v; one change p50 %v", 10*n, loaded, listed, took[50])
		})
	}
}

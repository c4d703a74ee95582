package socketlb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// batch is how many elements go into one system call.
const batch = 4096

// openMaps opens the maps that an agent before has pinned, and makes those that
// are missing, or that this version wants otherwise. None is pinned by this.
func openMaps(dir string, spec *ebpf.CollectionSpec) (maps map[string]*ebpf.Map, err error) {
	maps = map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for name, s := range spec.Maps {
		if s.Type == ebpf.Array { // constants, which come with the programs
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err == nil && s.Compatible(m) != nil {
			err = errors.Join(m.Close(), os.ErrNotExist)
		}
		if errors.Is(err, os.ErrNotExist) {
			m, err = ebpf.NewMap(s)
		}
		if err != nil {
			return maps, fmt.Errorf("open map %s: %w", name, err)
		}
		maps[name] = m
	}
	return maps, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		_ = m.Close() // a descriptor only
	}
}

// pinMaps pins what is not. Programs of another version, whose maps lose their
// pins by this, go on with them until they are replaced.
func pinMaps(dir string, maps map[string]*ebpf.Map) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for pins: %w", err)
	}
	for name, m := range maps {
		if !m.IsPinned() {
			if err := pin(m, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// pinned is anything that the BPF file system can hold.
type pinned interface{ Pin(string) error }

// pin puts p at path in one step, whatever is there.
func pin(p pinned, path string) error {
	aside := path + "_new" // no dots: bpffs keeps names with them to itself
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.Pin(aside); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := os.Rename(aside, path); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}

// each calls f for all elements of a map.
func each[K, V any](m *ebpf.Map, f func(K, V)) error {
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read map: %w", err)
		}
	}
}

// elements are to be put into a map.
type elements[K, V any] struct {
	keys   []K
	values []V
}

func (e *elements[K, V]) add(k K, v V) {
	e.keys, e.values = append(e.keys, k), append(e.values, v)
}

// put returns how many elements are in, from the first on.
func (e *elements[K, V]) put(maps map[string]*ebpf.Map, name string) (int, error) {
	m := maps[name]
	done := 0
	for done < len(e.keys) {
		to := min(done+batch, len(e.keys))
		n, err := m.BatchUpdate(e.keys[done:to], e.values[done:to], nil)
		if err != nil && n == to-done {
			n = 0 // it did not come so far as to count
		}
		done += n
		if err != nil {
			return done, full(m, name, err)
		}
	}
	return done, nil
}

// full explains the error of a map that has no room left.
func full(m *ebpf.Map, name string, err error) error {
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: %s holds %d elements", errFull, name, m.MaxEntries())
	}
	return fmt.Errorf("put into map %s: %w", name, err)
}

// remove takes keys out; those that are not there don't matter.
func remove[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys[:min(batch, len(keys))], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n++ // the one that is not there
		} else if err != nil {
			return fmt.Errorf("delete from map: %w", err)
		}
		keys = keys[n:]
	}
	return nil
}

package socketlb

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// loaded is what this process has put into the kernel.
type loaded struct {
	programs map[string]ebpf.ProgramID
	maps     map[string]ebpf.MapID // that the programs work with
}

// attach loads the programs and puts them in the place of those that are there,
// in one step each.
func (t *Target) attach() error {
	programs, err := load(t.spec, t.maps)
	if err != nil {
		return err
	}
	defer closePrograms(programs)
	now := loaded{map[string]ebpf.ProgramID{}, nil}
	for name, p := range programs {
		if err := t.link(name, p); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", name, t.opt.Cgroup, err)
		}
		info, err := p.Info()
		if err != nil {
			return err
		}
		now.programs[name], _ = info.ID()
	}
	if now.maps, err = mapIDs(t.maps); err != nil {
		return err
	}
	if err := t.tidy(); err != nil {
		return err
	}
	t.loaded = now
	return nil
}

// detachStale takes out the programs of before that work with other maps than
// ours, which nobody keeps right.
func (t *Target) detachStale() error {
	ours, err := mapIDs(t.maps)
	if err != nil {
		return err
	}
	for name := range t.spec.Programs {
		path := filepath.Join(t.opt.Pins, name)
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil || !workWith(l, ours) {
			err = os.Remove(path)
		}
		if l != nil {
			_ = l.Close() // a descriptor only
		}
		if err != nil {
			return fmt.Errorf("detach %s: %w", name, err)
		}
	}
	return nil
}

// workWith tells whether a link's program uses maps out of ours alone, beside the
// constants of its own.
func workWith(l link.Link, ours map[string]ebpf.MapID) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return false
	}
	defer p.Close()
	of, err := p.Info()
	if err != nil {
		return false
	}
	ids, _ := of.MapIDs()
	known := slices.Collect(maps.Values(ours))
	others := slices.DeleteFunc(ids, func(id ebpf.MapID) bool { return slices.Contains(known, id) })
	return len(others) <= 1
}

// tidy takes out what an agent of another version has pinned and this one does
// not know: nobody keeps it right any more.
func (t *Target) tidy() error {
	there, err := os.ReadDir(t.opt.Pins)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range there {
		if t.spec.Programs[e.Name()] != nil || t.maps[e.Name()] != nil {
			continue
		}
		if err := os.RemoveAll(filepath.Join(t.opt.Pins, e.Name())); err != nil {
			return fmt.Errorf("remove pin: %w", err)
		}
	}
	return nil
}

// load makes the kernel check and keep the programs.
func load(spec *ebpf.CollectionSpec, with map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: with})
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	defer c.Close()
	programs := maps.Clone(c.Programs)
	clear(c.Programs) // they are the caller's to close
	return programs, nil
}

func closePrograms(programs map[string]*ebpf.Program) {
	for _, p := range programs {
		_ = p.Close() // a descriptor only
	}
}

func mapIDs(of map[string]*ebpf.Map) (map[string]ebpf.MapID, error) {
	ids := map[string]ebpf.MapID{}
	for name, m := range of {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("ask for map %s: %w", name, err)
		}
		ids[name], _ = info.ID()
	}
	return ids, nil
}

// link attaches a program where none of ours is, and replaces it where one is.
func (t *Target) link(name string, p *ebpf.Program) error {
	path := filepath.Join(t.opt.Pins, name)
	if old, err := link.LoadPinnedLink(path, nil); err == nil {
		defer old.Close()
		if here, err := t.isHere(old); err == nil && here {
			return old.Update(p)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: t.opt.Cgroup, Attach: t.spec.Programs[name].AttachType, Program: p})
	if err != nil {
		return err
	}
	defer l.Close()
	return pin(l, path)
}

// isHere tells whether a link is to the cgroup in question, which may have been
// removed and made again.
func (t *Target) isHere(l link.Link) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(t.opt.Cgroup, &stat); err != nil {
		return false, err
	}
	return info.Cgroup() != nil && info.Cgroup().CgroupId == stat.Ino, nil
}

// attached tells whether the programs are those of this process, everywhere, and
// work with the maps that are pinned.
func (t *Target) attached() bool {
	ids, err := mapIDs(t.maps)
	if err != nil || !maps.Equal(ids, t.loaded.maps) {
		return false
	}
	for name, id := range t.loaded.programs {
		l, err := link.LoadPinnedLink(filepath.Join(t.opt.Pins, name), nil)
		if err != nil {
			return false
		}
		info, err := l.Info()
		here, hereErr := t.isHere(l)
		_ = l.Close() // a descriptor only
		if err != nil || hereErr != nil || !here || info.Program != id {
			return false
		}
	}
	return true
}

// removeAll takes everything out of the kernel; sockets that were sent somewhere
// stay connected.
func (t *Target) removeAll() error {
	t.close()
	t.loaded = loaded{}
	return Remove(t.opt.Pins)
}

// Remove takes out of the kernel what is pinned below a directory. It is no error
// if there is nothing.
func Remove(pins string) error {
	if _, err := os.Lstat(pins); errors.Is(err, os.ErrNotExist) {
		return nil // removing it would fail where nothing can be written
	}
	spec, err := loadObject()
	if err != nil {
		return err
	}
	for name := range spec.Programs { // first: without maps they would only cost time
		if err := os.Remove(filepath.Join(pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("detach: %w", err)
		}
	}
	if err := os.RemoveAll(pins); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

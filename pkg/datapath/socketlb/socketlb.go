// Package socketlb is the fast layer of Services: programs in the kernel that
// send the sockets of this node to a backend when they connect, so that none of
// their packets has to be translated. It knows the same rows as the nftables
// target, and less: what it does not hold, or can't do, goes through nftables
// with the same result.
//
// The maps and the attachments are pinned below the BPF file system, so that all
// of it outlives the agent; the next one takes the maps over and replaces the
// programs in place.
package socketlb

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/service"
)

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

var errFull = errors.New("a map is full")

// Options say where the programs go.
type Options struct {
	Cgroup string // directory of the version 2 cgroup whose processes are served
	Pins   string // directory in a BPF file system, ours alone
	// OnlyNetns is the cookie of the one network namespace whose sockets are
	// served (SO_NETNS_COOKIE, socket(7)); 0: all.
	OnlyNetns uint64
	// Left is told when the number of fronts has changed that have no room in a
	// map, with the reason of one of them. It may be nil.
	Left func(fronts int, why error)
}

// Target implements reconcile.Target for the fronts that sockets can be sent to.
// The zero key stands for the programs, and for all being in order beside. What
// has no room in the maps is no failure: it is left to nftables, and tried again
// after the next List. It is not safe for concurrent use.
type Target struct {
	opt  Options
	spec *ebpf.CollectionSpec

	maps   map[string]*ebpf.Map // nil: nothing is open
	sets   *sets
	held   map[service.FrontKey]held
	strays *strays
	loaded loaded
	left   map[service.FrontKey]error // that have no room
	told   int                        // how many of them Left knows of
}

// New returns the target. It touches nothing.
func New(opt Options) (*Target, error) {
	spec, err := loadObject()
	if err != nil {
		return nil, fmt.Errorf("read the programs: %w", err)
	}
	if err := spec.Variables["only_netns"].Set(opt.OnlyNetns); err != nil {
		return nil, fmt.Errorf("set only_netns: %w", err)
	}
	return &Target{opt: opt, spec: spec}, nil
}

// Fronts are those of a plan that sockets can be sent to. The others depend on
// where a packet comes from, or are for protocols and verdicts that nftables
// alone has.
func Fronts(all map[service.FrontKey]service.Front) map[service.FrontKey]service.Front {
	out := make(map[service.FrontKey]service.Front, len(all))
	for k, f := range all {
		if k == (service.FrontKey{}) || !k.Outside && (k.Protocol == tcp || k.Protocol == udp) && f.Verdict == service.Forward && f.Ranges == "" {
			out[k] = f
		}
	}
	return out
}

// List implements reconcile.Target.
func (t *Target) List(context.Context) (map[service.FrontKey]service.Front, error) {
	t.close()
	opened, err := openMaps(t.opt.Pins, t.spec)
	if err != nil {
		return nil, err
	}
	t.maps, t.sets = opened, newSets(opened)
	found, err := read(t.maps)
	if err != nil {
		t.close()
		return nil, err
	}
	t.held, t.strays = found.take(t.sets)
	out := make(map[service.FrontKey]service.Front, len(t.held)+1)
	for k, h := range t.held {
		out[k] = h.front
	}
	if t.attached() && t.strays.none() && t.told == 0 {
		out[service.FrontKey{}] = service.Front{}
	}
	return out, nil
}

// close forgets what List has found.
func (t *Target) close() {
	closeMaps(t.maps)
	t.maps, t.sets, t.held, t.strays, t.left = nil, nil, nil, nil, map[service.FrontKey]error{}
}

// Apply implements reconcile.Target. A front leads to its new set before the old
// one goes; the programs come last, so that with them the maps are full.
func (t *Target) Apply(_ context.Context, set map[service.FrontKey]service.Front, del []service.FrontKey) map[service.FrontKey]error {
	failed := map[service.FrontKey]error{}
	defer t.tell()
	if slices.Contains(del, service.FrontKey{}) {
		if err := t.removeAll(); err != nil {
			failed[service.FrontKey{}] = err
		}
		return failed
	}
	if err := t.fronts(set, del, failed); err != nil {
		for k := range set {
			failed[k] = err
		}
		for _, k := range del {
			failed[k] = err
		}
		return failed
	}
	if _, programs := set[service.FrontKey{}]; programs && !t.attached() {
		if err := t.attach(); err != nil {
			failed[service.FrontKey{}] = errors.Join(err, t.detachStale())
		}
	}
	return failed
}

// fronts sets and deletes fronts. An error of its own concerns all of them.
func (t *Target) fronts(set map[service.FrontKey]service.Front, del []service.FrontKey, failed map[service.FrontKey]error) error {
	if t.maps == nil {
		return errors.New("the maps are not open")
	}
	if err := pinMaps(t.opt.Pins, t.maps); err != nil {
		return err
	}
	if err := t.strays.remove(t.maps); err != nil {
		return err
	}
	t.strays = &strays{}
	t.setFronts(set, failed)
	for _, k := range del {
		if err := t.drop(k); err != nil {
			return err
		}
	}
	swept, err := t.sets.sweep()
	if err != nil || len(t.left) == 0 || !swept && len(del) == 0 {
		return err
	}
	again := map[service.FrontKey]service.Front{}
	for k := range t.left {
		if f, is := set[k]; is {
			again[k] = f
		}
	}
	t.setFronts(again, failed) // there is room now
	_, err = t.sets.sweep()
	return err
}

// setFronts makes the sets that fronts need, then has them lead there. Those that
// are held come first: they need no more room.
func (t *Target) setFronts(set map[service.FrontKey]service.Front, failed map[service.FrontKey]error) {
	var keys []service.FrontKey
	var to []held
	var choices elements[objectFront, objectChoice]
	for _, k := range t.heldFirst(set) {
		f := set[k]
		of, err := t.sets.make(contentOf(k, f))
		if err != nil {
			t.leave(k, err, failed)
			continue
		}
		of.fronts++ // so that it stays, whatever becomes of this front
		keys, to = append(keys, k), append(to, held{f, of})
		choices.add(frontOf(k), objectChoice{Set: of.id, Slots: uint32(f.Slots.Len(k.Addr.Is6())), Affinity: f.AffinitySeconds})
	}
	n, err := choices.put(t.maps, "fronts")
	for i, k := range keys {
		if i < n {
			t.hold(k, to[i])
			delete(t.left, k)
		} else {
			t.leave(k, err, failed)
		}
		t.sets.release(to[i].set)
	}
}

func (t *Target) heldFirst(set map[service.FrontKey]service.Front) []service.FrontKey {
	var first, then []service.FrontKey
	for k := range set {
		if _, is := t.held[k]; is {
			first = append(first, k)
		} else if k != (service.FrontKey{}) {
			then = append(then, k)
		}
	}
	return append(first, then...)
}

// leave leaves a front to nftables, since it can't lead where it shall. Where it
// has led so far it must not lead either.
func (t *Target) leave(k service.FrontKey, why error, failed map[service.FrontKey]error) {
	if err := t.drop(k); err != nil {
		failed[k] = errors.Join(why, err)
		return
	}
	if !errors.Is(why, errFull) {
		failed[k] = why
		return
	}
	t.left[k] = why
}

// drop takes a front out.
func (t *Target) drop(k service.FrontKey) error {
	delete(t.left, k)
	if _, is := t.held[k]; !is {
		return nil
	}
	if err := remove(t.maps["fronts"], []objectFront{frontOf(k)}); err != nil {
		return fmt.Errorf("take front %v out: %w", k, err)
	}
	t.hold(k, held{})
	return nil
}

// tell says how many fronts have no room, if that is news.
func (t *Target) tell() {
	if len(t.left) == t.told {
		return
	}
	t.told = len(t.left)
	if t.opt.Left == nil {
		return
	}
	var why error
	for _, why = range t.left {
		break
	}
	t.opt.Left(t.told, why)
}

// hold notes where a front leads now; the zero value: nowhere.
func (t *Target) hold(k service.FrontKey, h held) {
	if was, had := t.held[k]; had {
		t.sets.release(was.set)
	}
	if h.set == nil {
		delete(t.held, k)
		return
	}
	h.set.fronts++
	t.held[k] = h
}

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

var errTooBig = unix.E2BIG

// Options say where the programs go.
type Options struct {
	Cgroup string // directory of the version 2 cgroup whose processes are served
	Pins   string // directory in a BPF file system, ours alone
	// OnlyNetns is the cookie of the one network namespace whose sockets are
	// served (SO_NETNS_COOKIE, socket(7)); 0: all.
	OnlyNetns uint64
}

// Target implements reconcile.Target for the fronts that sockets can be sent to.
// The zero key stands for the programs. It is not safe for concurrent use.
type Target struct {
	opt  Options
	spec *ebpf.CollectionSpec

	maps   map[string]*ebpf.Map // nil: nothing is open
	sets   *sets
	held   map[service.FrontKey]held
	strays *strays
	loaded loaded
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
	if t.attached() {
		out[service.FrontKey{}] = service.Front{}
	}
	return out, nil
}

// close forgets what List has found.
func (t *Target) close() {
	closeMaps(t.maps)
	t.maps, t.sets, t.held, t.strays = nil, nil, nil, nil
}

// Apply implements reconcile.Target. A front leads to its new set before the old
// one goes; the programs come last, so that with them the maps are full.
func (t *Target) Apply(_ context.Context, set map[service.FrontKey]service.Front, del []service.FrontKey) map[service.FrontKey]error {
	failed := map[service.FrontKey]error{}
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
	if _, programs := set[service.FrontKey{}]; programs {
		if err := t.attach(); err != nil {
			failed[service.FrontKey{}] = err
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
		if err := remove(t.maps["fronts"], []objectFront{frontOf(k)}); err != nil {
			return err
		}
		t.hold(k, held{})
	}
	return t.sets.sweep()
}

// setFronts makes the sets that fronts need, then has them lead there.
func (t *Target) setFronts(set map[service.FrontKey]service.Front, failed map[service.FrontKey]error) {
	var keys []service.FrontKey
	var to []held
	var choices elements[objectFront, objectChoice]
	for k, f := range set {
		if k == (service.FrontKey{}) {
			continue
		}
		of, err := t.sets.make(contentOf(k, f))
		if err != nil {
			failed[k] = err
			continue
		}
		of.fronts++ // so that it stays, whatever becomes of this front
		keys, to = append(keys, k), append(to, held{f, of})
		choices.add(frontOf(k), objectChoice{Set: of.id, Slots: uint32(f.Slots.Len(k.Addr.Is6())), Affinity: f.AffinitySeconds})
	}
	n, err := choices.put(t.maps["fronts"])
	for i, k := range keys {
		to[i].set.fronts--
		if i < n {
			t.hold(k, to[i])
		} else {
			failed[k] = err
		}
	}
}

// hold notes where a front leads now; the zero value: nowhere.
func (t *Target) hold(k service.FrontKey, h held) {
	if was, had := t.held[k]; had {
		was.set.fronts--
	}
	if h.set == nil {
		delete(t.held, k)
		return
	}
	h.set.fronts++
	t.held[k] = h
}

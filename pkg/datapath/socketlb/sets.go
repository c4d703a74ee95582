package socketlb

import (
	"errors"
	"math"
	"math/rand/v2"

	"github.com/cilium/ebpf"

	"github.com/clustermesh/clustermesh/pkg/service"
)

// content is what a set holds. Fronts with the same backends share one.
type content struct {
	slots service.Slots
	six   bool
	stays bool // it has members: clients stay with its backends
}

func contentOf(k service.FrontKey, f service.Front) content {
	return content{f.Slots, k.Addr.Is6(), f.AffinitySeconds > 0 || k.Protocol == udp}
}

// set is slots in the kernel, under a number, and how many fronts lead there.
// A set is never changed, so that a program sees all of it or nothing.
type set struct {
	content content
	id      uint32
	fronts  int
}

// sets are those that the kernel holds.
type sets struct {
	maps      map[string]*ebpf.Map
	byContent map[content]*set
	last      uint32 // the number given out last; at random first, so that two agents at once don't give out the same
	used      map[uint32]bool
	idle      []*set // that no front led to when they were put here
}

func newSets(maps map[string]*ebpf.Map) *sets {
	return &sets{maps: maps, byContent: map[content]*set{}, used: map[uint32]bool{}, last: rand.Uint32()}
}

// found takes a set into account that is there already.
func (s *sets) found(id uint32, c content) *set {
	of := &set{content: c, id: id}
	s.byContent[c], s.used[id] = of, true
	return of
}

// make returns the set with content c, which it puts into the kernel if it is
// not there.
func (s *sets) make(c content) (*set, error) {
	if of := s.byContent[c]; of != nil {
		return of, nil
	}
	of := s.found(s.free(), c)
	var slots elements[objectSlot, objectEndpoint]
	var members elements[objectMember, uint8]
	for i, e := range slotsOf(c.slots, c.six) {
		slots.add(objectSlot{Set: of.id, Index: uint32(i)}, e)
		members.add(objectMember{Set: of.id, Backend: e}, 1)
	}
	_, err := slots.put(s.maps, "slots")
	if err == nil && c.stays {
		_, err = members.put(s.maps, "members")
	}
	if err != nil {
		return nil, errors.Join(err, s.drop(of))
	}
	s.idle = append(s.idle, of)
	return of, nil
}

// release takes one front from a set.
func (s *sets) release(of *set) {
	if of.fronts--; of.fronts == 0 {
		s.idle = append(s.idle, of)
	}
}

// free is a number that no set has.
func (s *sets) free() uint32 {
	for {
		if s.last++; s.last == math.MaxUint32 {
			s.last = 1
		}
		if !s.used[s.last] {
			return s.last
		}
	}
}

// drop takes a set out of the kernel that no front leads to.
func (s *sets) drop(of *set) error {
	delete(s.byContent, of.content)
	delete(s.used, of.id)
	var slots []objectSlot
	var members []objectMember
	for i, e := range slotsOf(of.content.slots, of.content.six) {
		slots = append(slots, objectSlot{Set: of.id, Index: uint32(i)})
		members = append(members, objectMember{Set: of.id, Backend: e})
	}
	err := remove(s.maps["slots"], slots)
	if of.content.stays {
		err = errors.Join(err, remove(s.maps["members"], members))
	}
	return err
}

// sweep drops all sets that no front leads to, and tells whether there were any.
func (s *sets) sweep() (any bool, err error) {
	var errs []error
	for _, of := range s.idle {
		if of.fronts == 0 && s.byContent[of.content] == of { // else it is in use again, or has gone
			errs, any = append(errs, s.drop(of)), true
		}
	}
	s.idle = nil
	return any, errors.Join(errs...)
}

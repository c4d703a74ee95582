package socketlb

import (
	"maps"

	"github.com/cilium/ebpf"

	"github.com/clustermesh/clustermesh/pkg/service"
)

// held is a front as the kernel has it.
type held struct {
	front service.Front
	set   *set
}

// contents are all elements of the maps that Go writes.
type contents struct {
	fronts  map[objectFront]objectChoice
	slots   map[uint32]map[uint32]objectEndpoint
	members map[uint32]map[objectEndpoint]bool
}

func read(from map[string]*ebpf.Map) (*contents, error) {
	c := &contents{map[objectFront]objectChoice{}, map[uint32]map[uint32]objectEndpoint{}, map[uint32]map[objectEndpoint]bool{}}
	err := each(from["fronts"], func(k objectFront, v objectChoice) { c.fronts[k] = v })
	if err == nil {
		err = each(from["slots"], func(k objectSlot, v objectEndpoint) {
			if c.slots[k.Set] == nil {
				c.slots[k.Set] = map[uint32]objectEndpoint{}
			}
			c.slots[k.Set][k.Index] = v
		})
	}
	if err == nil {
		err = each(from["members"], func(k objectMember, _ uint8) {
			if c.members[k.Set] == nil {
				c.members[k.Set] = map[objectEndpoint]bool{}
			}
			c.members[k.Set][k.Backend] = true
		})
	}
	return c, err
}

// take makes rows of what fits together, and returns the elements that do not:
// an agent that was killed, or somebody else, has left them.
func (c *contents) take(into *sets) (rows map[service.FrontKey]held, bad *strays) {
	rows, bad = map[service.FrontKey]held{}, &strays{}
	known := map[uint32]*set{}
	for k, choice := range c.fronts {
		key := k.key()
		of, ok := c.set(key, choice)
		if was := known[choice.Set]; was != nil && was.content != of {
			ok = false
		}
		if !ok || into.byContent[of] != nil && known[choice.Set] == nil {
			bad.fronts = append(bad.fronts, k)
			continue
		}
		if known[choice.Set] == nil {
			known[choice.Set] = into.found(choice.Set, of)
		}
		known[choice.Set].fronts++
		rows[key] = held{service.Front{Slots: of.slots, AffinitySeconds: choice.Affinity}, known[choice.Set]}
	}
	for id, slots := range c.slots {
		if known[id] == nil {
			for index := range maps.Keys(slots) {
				bad.slots = append(bad.slots, objectSlot{Set: id, Index: index})
			}
		}
	}
	for id, backends := range c.members {
		if known[id] == nil || !known[id].content.stays {
			for backend := range backends {
				bad.members = append(bad.members, objectMember{Set: id, Backend: backend})
			}
		}
	}
	return rows, bad
}

// set is the content of the set that a front leads to, if that is whole.
func (c *contents) set(key service.FrontKey, choice objectChoice) (content, bool) {
	six := key.Addr.Is6()
	slots := c.slots[choice.Set]
	if len(slots) == 0 || len(slots) != int(choice.Slots) {
		return content{}, false
	}
	var packed []byte
	for i := range choice.Slots {
		e, ok := slots[i]
		at := e.addrPort()
		if !ok || at.Addr().Is6() != six {
			return content{}, false
		}
		packed = service.AppendSlot(packed, at)
	}
	of := contentOf(key, service.Front{Slots: service.Slots(packed), AffinitySeconds: choice.Affinity})
	if !of.stays {
		return of, true
	}
	distinct := map[objectEndpoint]bool{}
	for _, e := range slots {
		distinct[e] = true
	}
	return of, maps.Equal(distinct, c.members[choice.Set])
}

// strays are elements that belong to no row.
type strays struct {
	fronts  []objectFront
	slots   []objectSlot
	members []objectMember
}

func (s *strays) none() bool { return len(s.fronts)+len(s.slots)+len(s.members) == 0 }

func (s *strays) remove(from map[string]*ebpf.Map) error {
	if err := remove(from["fronts"], s.fronts); err != nil { // first: a front must not lead to nothing
		return err
	}
	if err := remove(from["slots"], s.slots); err != nil {
		return err
	}
	return remove(from["members"], s.members)
}

package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/status"
	"github.com/clustermesh/clustermesh/pkg/wire"
)

// ref names a Service.
type ref struct{ namespace, name string }

// claim is a front that a port of a Service wants.
type claim struct {
	owner model.ServicePortKey
	front Front
	rank  rank
}

// Planner keeps a plan up to date with rows. Only what depends on changed rows is
// computed anew, and said; the result is what a new Planner would say of all
// rows. It is not safe for concurrent use.
type Planner struct {
	base   Base
	ports  map[model.ServicePortKey]model.ServicePort
	slices map[model.SliceKey]string

	pods map[model.PodKey]model.Pod // that have host ports

	byService map[ref]*members
	serviceOf map[model.SliceKey]ref
	claims    map[FrontKey][]claim // never empty
	dirty     map[ref]bool

	fronts  map[FrontKey]Front // what the claims come to
	shared  map[FrontKey]bool  // those with several claims
	settled bool               // Update has been called
	trouble map[ref][]status.Line
	garbled map[model.SliceKey]status.Line // slices that can't be read
	health  map[ref]healthPort

	datagrams uint64
}

// members are the rows of one Service.
type members struct {
	ports  map[string]bool
	slices map[model.SliceKey]bool
	fronts []FrontKey // that it claims
}

type healthPort struct {
	port  uint16
	local int
}

// NewPlanner returns a planner that knows no rows.
func NewPlanner() *Planner {
	return &Planner{
		ports: map[model.ServicePortKey]model.ServicePort{}, slices: map[model.SliceKey]string{}, pods: map[model.PodKey]model.Pod{},
		byService: map[ref]*members{}, serviceOf: map[model.SliceKey]ref{}, claims: map[FrontKey][]claim{}, dirty: map[ref]bool{},
		fronts: map[FrontKey]Front{}, shared: map[FrontKey]bool{}, trouble: map[ref][]status.Line{}, garbled: map[model.SliceKey]status.Line{}, health: map[ref]healthPort{},
	}
}

// SetBase sets what node and configuration fix.
func (p *Planner) SetBase(b Base) {
	if p.base.Node == b.Node && p.base.Zone == b.Zone && slices.Equal(p.base.NodeAddrs, b.NodeAddrs) && slices.Equal(p.base.HostAddrs, b.HostAddrs) &&
		slices.Equal(p.base.Ours, b.Ours) && slices.Equal(p.base.External, b.External) {
		return
	}
	p.base = b
	for r := range p.byService {
		p.dirty[r] = true
	}
	for k := range p.pods { // also those that had no address to be served at
		p.dirty[podRef(k)] = true
	}
}

// SetPorts takes in changed and deleted ports of Services.
func (p *Planner) SetPorts(set map[model.ServicePortKey]model.ServicePort, del []model.ServicePortKey) {
	for k, v := range set {
		r := ref{k.Namespace, k.Name}
		p.ports[k] = v
		p.of(r).ports[k.Port] = true
		p.dirty[r] = true
	}
	for _, k := range del {
		r := ref{k.Namespace, k.Name}
		delete(p.ports, k)
		delete(p.of(r).ports, k.Port)
		p.dirty[r] = true
	}
}

// SetPods takes in changed and deleted pods of this node.
func (p *Planner) SetPods(set map[model.PodKey]model.Pod, del []model.PodKey) {
	for k, pod := range set {
		if old, had := p.pods[k]; pod.HostPorts == "" && !had || old == pod {
			continue
		}
		p.pods[k] = pod
		p.dirty[podRef(k)] = true
	}
	for _, k := range del {
		if _, had := p.pods[k]; had {
			delete(p.pods, k)
			p.dirty[podRef(k)] = true
		}
	}
}

// podRef stands for a pod among Services. No namespace has a slash.
func podRef(k model.PodKey) ref { return ref{hostPorts, k.ContainerID + "/" + k.IfName} }

const hostPorts = "host/ports"

// SetSlices takes in changed and deleted EndpointSlices.
func (p *Planner) SetSlices(set map[model.SliceKey]string, del []model.SliceKey) {
	for k, v := range set {
		p.forget(k)
		s, err := wire.DecodeSlice([]byte(v))
		if err != nil {
			l := line(model.ServicePortKey{Namespace: k.Namespace, Name: k.Name}, fmt.Sprintf("EndpointSlice can't be read, none of its endpoints counts: %v", err), "make it smaller, or report what is in it")
			p.garbled[k], p.settled = l, false
			continue
		}
		r := ref{k.Namespace, s.Service}
		p.slices[k], p.serviceOf[k] = v, r
		p.of(r).slices[k] = true
		p.dirty[r] = true
	}
	for _, k := range del {
		p.forget(k)
	}
}

func (p *Planner) forget(k model.SliceKey) {
	if r, known := p.serviceOf[k]; known {
		delete(p.of(r).slices, k)
		p.dirty[r] = true
	}
	delete(p.slices, k)
	delete(p.serviceOf, k)
	if _, bad := p.garbled[k]; bad {
		delete(p.garbled, k)
		p.settled = false
	}
}

func (p *Planner) of(r ref) *members {
	m := p.byService[r]
	if m == nil {
		m = &members{ports: map[string]bool{}, slices: map[model.SliceKey]bool{}}
		p.byService[r] = m
	}
	return m
}

// Update returns what has changed since the last call, nil if nothing has.
func (p *Planner) Update() *Patch {
	if len(p.dirty) == 0 && p.settled {
		return nil
	}
	touched := map[FrontKey]bool{}
	for r := range p.dirty {
		p.replan(r, touched)
	}
	p.dirty, p.settled = map[ref]bool{}, true
	patch := &Patch{Set: map[FrontKey]Front{}}
	for k := range touched {
		p.settle(k, patch)
	}
	patch.Total = len(p.fronts)
	patch.Health, patch.Lines = p.healthPorts(), p.lines()
	return patch
}

// settle gives a front to the first of those who claim it.
func (p *Planner) settle(k FrontKey, patch *Patch) {
	list := p.claims[k]
	if delete(p.shared, k); len(list) > 1 {
		p.shared[k] = true
	}
	old, was := p.fronts[k]
	switch {
	case len(list) == 0 && !was, len(list) > 0 && was && list[0].front == old:
		return
	case len(list) == 0:
		delete(p.fronts, k)
		patch.Del = append(patch.Del, k)
	default:
		p.fronts[k], patch.Set[k] = list[0].front, list[0].front
	}
	if k.Protocol == udp {
		p.datagrams++
	}
}

// Plan is the whole plan of all rows so far; what Update returns next is what
// changes after it.
func (p *Planner) Plan() *Plan {
	p.Update()
	all := maps.Clone(p.fronts)
	all[FrontKey{}] = Front{}
	return &Plan{Fronts: all, Health: p.healthPorts(), Lines: p.lines()}
}

// healthPorts are who is asked for where. Kubernetes gives a port out once; while
// it moves, the smaller name has it.
func (p *Planner) healthPorts() map[uint16]Health {
	out := map[uint16]Health{}
	for r, h := range p.health {
		mine := Health{r.namespace, r.name, h.local}
		if other, taken := out[h.port]; !taken || mine.service() < other.service() {
			out[h.port] = mine
		}
	}
	return out
}

const udp = 17

// Datagrams counts the changes of UDP fronts so far: after one of them, flows
// that the kernel remembers may lead to where no backend is any more.
func (p *Planner) Datagrams() uint64 { return p.datagrams }

// replan replaces all claims of a Service.
func (p *Planner) replan(r ref, touched map[FrontKey]bool) {
	m := p.of(r)
	for _, k := range m.fronts {
		touched[k] = true
		p.claims[k] = slices.DeleteFunc(p.claims[k], func(c claim) bool { return ref{c.owner.Namespace, c.owner.Name} == r })
		if len(p.claims[k]) == 0 {
			delete(p.claims, k)
		}
	}
	m.fronts = nil
	delete(p.trouble, r)
	delete(p.health, r)
	add := func(k FrontKey, c claim) {
		touched[k] = true
		m.fronts = append(m.fronts, k)
		i, _ := slices.BinarySearchFunc(p.claims[k], c, compareClaims)
		p.claims[k] = slices.Insert(p.claims[k], i, c)
	}
	if r.namespace == hostPorts {
		container, ifName, _ := strings.Cut(r.name, "/")
		p.hostPorts(r, p.pods[model.PodKey{ContainerID: container, IfName: ifName}], add)
	}
	if len(m.ports) == 0 {
		if len(m.slices) == 0 && len(m.fronts) == 0 {
			delete(p.byService, r)
		}
		return
	}
	b := p.builder(r)
	b.add = add
	for _, name := range slices.Sorted(maps.Keys(m.ports)) {
		key := model.ServicePortKey{Namespace: r.namespace, Name: r.name, Port: name}
		b.port(key, p.ports[key])
	}
	if b.healthPort != 0 {
		p.health[r] = healthPort{b.healthPort, b.ready()}
	}
	if len(b.lines) > 0 {
		p.trouble[r] = b.lines
	}
}

// hostPorts makes the claims of a pod's host ports. The scheduler keeps two pods
// with the same port apart; after Services, the smaller name has it.
func (p *Planner) hostPorts(r ref, pod model.Pod, add func(FrontKey, claim)) {
	for _, port := range model.ParseHostPorts(pod.HostPorts) {
		for _, at := range p.base.HostAddrs {
			ip := pod.IPs.V4
			if at.Is6() {
				ip = pod.IPs.V6
			}
			if !ip.IsValid() || port.Addr.IsValid() && port.Addr != at {
				continue
			}
			slots, _ := Spread([]Backend{{netip.AddrPortFrom(ip, port.Container), 1}})
			owner := model.ServicePortKey{Namespace: r.namespace, Name: r.name, Port: fmt.Sprintf("%s/%s:%d", pod.Namespace, pod.Name, port.Host)}
			add(FrontKey{Addr: at, Protocol: port.Protocol, Port: port.Host}, claim{owner, Front{Slots: slots}, rank{external: true}})
		}
	}
}

// builder returns the builder of a Service's claims, with its slices decoded.
func (p *Planner) builder(r ref) *builder {
	var all []wire.Slice
	for k := range p.of(r).slices {
		if s, err := wire.DecodeSlice([]byte(p.slices[k])); err == nil {
			all = append(all, s)
		}
	}
	return &builder{base: &p.base, ports: index(all), local: map[netip.Addr]bool{}}
}

// lines are what can't be done: by Service, and which claims lost.
func (p *Planner) lines() []status.Line {
	var out []status.Line
	for _, lines := range p.trouble {
		out = append(out, lines...)
	}
	for _, l := range p.garbled {
		out = append(out, l)
	}
	out = append(out, p.healthLines()...)
	for k := range p.shared {
		list := p.claims[k]
		for _, c := range list[1:] {
			if c.owner.Service() == list[0].owner.Service() {
				continue
			}
			out = append(out, line(c.owner, fmt.Sprintf("%v belongs to service %s; this one is not served there", k, list[0].owner),
				"give the two Services different addresses or ports"))
		}
	}
	slices.SortFunc(out, func(a, b status.Line) int {
		return strings.Compare(a.Object+"\x00"+a.Message, b.Object+"\x00"+b.Message)
	})
	return joined(out)
}

// joined makes one line of those about the same thing.
func joined(lines []status.Line) (out []status.Line) {
	const most = 1000
	for _, l := range lines {
		last := len(out) - 1
		switch {
		case last < 0 || out[last].Object != l.Object:
			out = append(out, l)
		case strings.Contains(out[last].Message, l.Message) || strings.HasSuffix(out[last].Message, more):
		case len(out[last].Message) > most:
			out[last].Message += more
		default:
			out[last].Message += "; " + l.Message
		}
	}
	return out
}

const more = "; and more"

// healthLines are about Services whose healthCheckNodePort is another's.
func (p *Planner) healthLines() (out []status.Line) {
	has := p.healthPorts()
	for r, h := range p.health {
		if owner := has[h.port]; owner.service() != (Health{Namespace: r.namespace, Name: r.name}).service() {
			out = append(out, line(model.ServicePortKey{Namespace: r.namespace, Name: r.name},
				fmt.Sprintf("healthCheckNodePort %d belongs to service %s; this one is not served there", h.port, owner.service()), "give the two Services different ports"))
		}
	}
	return out
}

func line(k model.ServicePortKey, message, remedy string) status.Line {
	return status.Line{Key: status.Key{Component: "services", Object: k.String()}, Level: status.Degraded, Message: message, Remedy: remedy}
}

// addrs reads a list of a row.
func addrs(list string) []netip.Addr {
	var out []netip.Addr
	for _, text := range strings.Fields(list) {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

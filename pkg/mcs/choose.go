package mcs

import "math/bits"

// Candidate is a backend of one port and family.
type Candidate struct {
	Cluster                     string
	Ready, Serving, Terminating bool
}

// Use is what becomes of a Candidate.
type Use struct {
	Weight uint32 // relative to the others; 0: it gets no new connections
	Group  int    // of the policy, from 0; -1: none
	Why    Why
}

// Why says why a backend is used or not.
type Why uint8

// The reasons.
const (
	Ready            Why = iota // used
	LastServing                 // used: it terminates, but no other is better
	LastStale                   // used: its cluster is silent, but no other has any
	NotReady                    // not used
	Terminating                 // not used: it terminates, and others are ready
	LaterGroup                  // not used: earlier groups are enough
	NotListed                   // not used: the Service's list does not name its cluster
	ZeroWeight                  // not used: its cluster's weight is 0
	SilentCluster               // not used: its cluster is silent for staleAfter, and others are not
	WithdrawnCluster            // not used: its cluster is silent for expireAfter
)

func (w Why) String() string {
	return [...]string{
		"ready",
		"terminating, but still serving, and no other is ready",
		"its cluster is silent, but no other has backends",
		"not ready",
		"terminating, and others are ready",
		"ready, but clusters before its own have enough",
		"its cluster is not in " + AnnotationClusters,
		"its cluster has weight 0",
		"its cluster is silent, and others have backends",
		"its cluster has been silent for too long",
	}[w]
}

// chooser chooses among candidates.
type chooser struct {
	policy  Policy
	list    []Candidate
	fresh   []Freshness // of the candidates' clusters
	out     []Use
	weights []uint32 // of the candidates' clusters in their groups
}

// Choose says which backends of a port get new connections, one answer for each
// of list: the ready ones of the first group, and of further ones as long as
// fewer than half of what was taken is ready; if nobody is, those that still
// serve while they terminate. Clusters that are stale count only if the fresh
// ones have nothing; those that are expired never.
func Choose(p Policy, own string, fresh func(cluster string) Freshness, list []Candidate) []Use {
	c := &chooser{policy: p, list: list, fresh: make([]Freshness, len(list)), out: make([]Use, len(list)), weights: make([]uint32, len(list))}
	type known struct {
		Freshness
		group int
		member
	}
	clusters := map[string]known{}
	for i, x := range list {
		k, ok := clusters[x.Cluster]
		if !ok {
			if x.Cluster != own {
				k.Freshness = fresh(x.Cluster)
			}
			k.group, k.member = p.find(own, x.Cluster)
			clusters[x.Cluster] = k
		}
		c.fresh[i], c.weights[i], c.out[i] = k.Freshness, k.weight, Use{Group: k.group, Why: idle(x, k.Freshness, k.group, k.weight)}
	}
	for _, f := range []Freshness{Fresh, Stale} {
		if taken := c.ready(f); taken != nil {
			c.share(taken, map[Freshness]Why{Fresh: Ready, Stale: LastStale}[f])
			break
		}
		if taken := c.serving(f); taken != nil {
			c.share(taken, LastServing)
			break
		}
	}
	return c.out
}

// idle is why a candidate is not used, if it is not.
func idle(x Candidate, f Freshness, group int, weight uint32) Why {
	switch {
	case f == Expired:
		return WithdrawnCluster
	case group < 0:
		return NotListed
	case weight == 0:
		return ZeroWeight
	case !x.Ready && x.Terminating:
		return Terminating
	case !x.Ready:
		return NotReady
	case f == Stale:
		return SilentCluster
	}
	return LaterGroup
}

// counts tells whether a candidate may be taken at all.
func (c *chooser) counts(i int, f Freshness) bool {
	return c.fresh[i] == f && c.out[i].Group >= 0 && c.weights[i] > 0
}

// ready takes the ready ones, group by group, until it has enough.
func (c *chooser) ready(f Freshness) (taken []int) {
	all := 0
	for g := range c.policy.size() {
		for i, x := range c.list {
			if c.out[i].Group != g || !c.counts(i, f) {
				continue
			}
			if x.Ready {
				taken = append(taken, i)
			}
			if x.Ready || !x.Terminating {
				all++
			}
		}
		if len(taken) > 0 && 2*len(taken) >= all {
			break
		}
	}
	return taken
}

// serving takes those of the first group that has any that serve and terminate.
func (c *chooser) serving(f Freshness) (taken []int) {
	for g := range c.policy.size() {
		for i, x := range c.list {
			if c.out[i].Group == g && c.counts(i, f) && x.Serving && x.Terminating {
				taken = append(taken, i)
			}
		}
		if taken != nil {
			break
		}
	}
	return taken
}

// fraction is a share of one backend, where one without weights has 1.
type fraction struct{ num, den uint64 }

// share gives those that are taken their weights. A group gets as much as it has
// backends; with weights its clusters divide that among them, and each cluster's
// backends are alike.
func (c *chooser) share(taken []int, why Why) {
	type key struct {
		group   int
		cluster string
	}
	inGroup, inCluster, sum := map[int]uint64{}, map[key]uint64{}, map[int]uint64{}
	for _, i := range taken {
		g, k := c.out[i].Group, key{c.out[i].Group, c.list[i].Cluster}
		inGroup[g]++
		if inCluster[k]++; inCluster[k] == 1 {
			sum[g] += uint64(c.weights[i])
		}
	}
	shares := make([]fraction, len(taken))
	for n, i := range taken {
		shares[n] = fraction{1, 1}
		if g := c.out[i].Group; c.policy.weighted(g) {
			shares[n] = reduced(inGroup[g]*uint64(c.weights[i]), sum[g]*inCluster[key{g, c.list[i].Cluster}])
		}
	}
	for n, w := range whole(shares) {
		c.out[taken[n]].Weight, c.out[taken[n]].Why = w, why
	}
}

// largestWeight bounds weights so that sums of them with numbers of slots fit.
const largestWeight = 1 << 24

// whole returns whole numbers in the ratio of shares: the smallest, if these are
// not too large, else the nearest.
func whole(shares []fraction) []uint32 {
	common, most := uint64(1), uint64(0)
	for _, s := range shares {
		if common = common / gcd(common, s.den) * s.den; common > largestWeight {
			break
		}
	}
	scale := func(s fraction) uint64 { return s.num * (common / s.den) }
	for _, s := range shares {
		if common <= largestWeight {
			most = max(most, scale(s))
		}
	}
	if common > largestWeight || most > largestWeight {
		largest := shares[0]
		for _, s := range shares {
			if s.num*largest.den > largest.num*s.den {
				largest = s
			}
		}
		scale = func(s fraction) uint64 { // in units of the largest share
			return max(1, muldiv(largestWeight, s.num*largest.den, largest.num*s.den))
		}
	}
	out := make([]uint32, len(shares))
	divisor := uint64(0)
	for i, s := range shares {
		out[i] = uint32(scale(s))
		divisor = gcd(divisor, uint64(out[i]))
	}
	for i := range out {
		out[i] /= uint32(divisor)
	}
	return out
}

func muldiv(a, num, den uint64) uint64 {
	hi, lo := bits.Mul64(a, num)
	q, _ := bits.Div64(hi, lo, den) // num is at most den, so it fits
	return q
}

func reduced(num, den uint64) fraction {
	d := gcd(num, den)
	return fraction{num / d, den / d}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

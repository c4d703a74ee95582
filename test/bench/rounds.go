package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/clustermesh/clustermesh/test/lab"
)

// series is what the rounds of one set-up have measured: by path and verb, per
// second, one value a round.
type series struct{ values map[string][]float64 }

func (s *series) add(path, verb string, v float64) {
	if s.values == nil {
		s.values = map[string][]float64{}
	}
	s.values[path+"/"+verb] = append(s.values[path+"/"+verb], v)
}

// ratio divides one path by another round by round, so that what slows the
// machine for a while slows both sides.
func (s *series) ratio(path, by, verb string) []float64 {
	var out []float64
	for i, v := range s.values[path+"/"+verb] {
		out = append(out, v/s.values[by+"/"+verb][i])
	}
	return out
}

// share of a path is its ratio to the host's.
func (s *series) share(path, verb string) []float64 { return s.ratio(path, pathHost, verb) }

// results are the host's values and the others' shares.
func (s *series) results(setup string) []Result {
	if len(s.values) == 0 {
		return nil
	}
	var out []Result
	for _, path := range paths {
		for _, verb := range verbs {
			name := "datapath/" + setup + "/" + path + "/" + verb
			if path != pathHost {
				out = append(out, figure(name, "share", s.share(path, verb)...))
				continue
			}
			unit := "1/s"
			if verb == "stream" {
				unit = "Gbit/s"
			}
			out = append(out, figure(name, unit, s.values[path+"/"+verb]...))
		}
	}
	return out
}

func round(v float64) float64 { return math.Round(v*100) / 100 }

// measurePaths makes the pods and runs the rounds. Every second round goes the
// other way round, so that no path always comes first.
func (b *bench) measurePaths(ctx context.Context, l *lab.Lab, setup string) (*series, error) {
	p, err := b.startPods(ctx, l)
	if err != nil {
		return nil, err
	}
	defer p.stop(ctx)
	warm := &series{}
	if err := b.round(p, warm, b.each/5, paths); err != nil {
		return nil, err
	}
	s := &series{}
	for i := range b.rounds {
		order := slices.Clone(paths)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		if err := b.round(p, s, b.each, order); err != nil {
			return nil, fmt.Errorf("%s, round %d: %w", setup, i+1, err)
		}
		progress("%s: round %d of %d: across nodes %.2f, across clusters %.2f of the host's request-response", setup, i+1, b.rounds,
			s.share(pathNodes, "rr")[i], s.share(pathClusters, "rr")[i])
	}
	return s, nil
}

// round measures every verb on every path.
func (b *bench) round(p *perfPods, s *series, d time.Duration, order []string) error {
	for _, verb := range verbs {
		for _, path := range order {
			v, err := p.clients[path].measure(verb, p.servers[path], d)
			if err != nil {
				return fmt.Errorf("path %s: %w", path, err)
			}
			s.add(path, verb, v)
		}
	}
	return nil
}

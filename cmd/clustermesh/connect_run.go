package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// connect looks at everything, decides, and only then writes.
func (c *connecting) connect(ctx context.Context, source *member, destinations []*member) error {
	facts := c.gather(ctx, append([]*member{source}, destinations...))
	var links []link
	var problems []problem
	for i, destination := range destinations {
		pair := c.probe(ctx, source, destination, facts[0], facts[i+1])
		pairLinks := c.links(source, destination, pair)
		problems = append(problems, preflight(pair)...)
		problems = append(problems, c.staleLinks(pairLinks, pair)...)
		for _, sibling := range facts[1 : i+1] {
			problems = append(problems, preflightSiblings(sibling, facts[i+1])...)
		}
		links = append(links, pairLinks...)
	}
	failures, warnings := split(unique(problems))
	for _, warning := range warnings {
		c.show.step("warning: %s", warning)
	}
	if err := refusal("connect", failures); err != nil {
		return err
	}
	if c.options.dryRun {
		return c.print(links)
	}
	return c.apply(ctx, links)
}

// unique keeps the first of equal items.
func unique[T comparable](items []T) []T {
	var kept []T
	for _, item := range items {
		if !slices.Contains(kept, item) {
			kept = append(kept, item)
		}
	}
	return kept
}

// gather asks all clusters at the same time.
func (c *connecting) gather(ctx context.Context, members []*member) []clusterFacts {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.context
	}
	c.show.step("looking at %s", strings.Join(names, ", "))
	facts := make([]clusterFacts, len(members))
	var group errgroup.Group
	for i, m := range members {
		group.Go(func() error {
			facts[i] = gatherFacts(ctx, m)
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	for _, f := range facts {
		if len(f.Problems) == 0 {
			c.show.step("context %s is cluster %s: clustermesh %s, %s, pods in %s", f.Context, f.Name, f.Version, counted(len(f.Nodes), "node"), list(f.PodCIDRs))
		}
	}
	return facts
}

// probe lets each side try the endpoints of the other.
func (c *connecting) probe(ctx context.Context, source, destination *member, a, b clusterFacts) pairFacts {
	if len(c.options.sourceEndpoints) > 0 {
		a.Endpoints = c.options.sourceEndpoints
	}
	if len(c.options.destinationEndpoints) > 0 {
		b.Endpoints = c.options.destinationEndpoints
	}
	pair := pairFacts{Source: a, Destination: b}
	if len(a.Problems)+len(b.Problems)+len(checkSame(a, b)) > 0 {
		return pair
	}
	var group errgroup.Group
	group.Go(func() error {
		pair.ToDestination = probe(ctx, source, probeTarget{b.Name, b.CABundle}, unique(b.Endpoints))
		return nil
	})
	group.Go(func() error {
		pair.ToSource = probe(ctx, destination, probeTarget{a.Name, a.CABundle}, unique(a.Endpoints))
		return nil
	})
	_ = group.Wait() // no function returns an error
	c.tellProbes(a.Name, b.Name, pair.ToDestination)
	c.tellProbes(b.Name, a.Name, pair.ToSource)
	return pair
}

func (c *connecting) tellProbes(from, to string, probes []status.Probe) {
	for _, p := range probes {
		if p.Reachable {
			c.show.step("%s reaches %s at %s", from, to, p.Endpoint)
		}
	}
}

// links are the two Peers of a pair. Endpoints that answer come first, since they are tried in order.
func (c *connecting) links(source, destination *member, pair pairFacts) []link {
	a, b := pair.Source, pair.Destination
	return []link{
		{in: source, context: a.Context, cluster: a.Name, of: b, endpoints: reachableFirst(pair.ToDestination),
			given: len(c.options.destinationEndpoints) > 0, have: existingPeer(a.Peers, b.Name)},
		{in: destination, context: b.Context, cluster: b.Name, of: a, endpoints: reachableFirst(pair.ToSource),
			given: len(c.options.sourceEndpoints) > 0, have: existingPeer(b.Peers, a.Name)},
	}
}

func reachableFirst(probes []status.Probe) []string {
	var good, bad []string
	for _, p := range probes {
		if p.Reachable {
			good = append(good, p.Endpoint)
		} else {
			bad = append(bad, p.Endpoint)
		}
	}
	return append(good, bad...)
}

// staleLinks reports Peers that differ, unless this run is to bring them up to date.
func (c *connecting) staleLinks(links []link, pair pairFacts) []problem {
	if c.options.refresh || c.options.dryRun || len(pair.Source.Problems)+len(pair.Destination.Problems) > 0 {
		return nil
	}
	var problems []problem
	for _, l := range links {
		problems = append(problems, l.checkChanges(refreshCommand(pair.Source.Context, pair.Destination.Context))...)
	}
	return problems
}

func (c *connecting) print(links []link) error {
	if c.options.output == "" {
		for _, l := range links {
			fmt.Fprintf(c.out, "would %s peer %s in context %s\n", verb(l), l.of.Name, l.context)
		}
		return nil
	}
	for _, l := range links {
		text, err := l.manifest()
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c.out, text); err != nil {
			return fmt.Errorf("print peers: %w", err)
		}
	}
	return nil
}

func verb(l link) string {
	switch {
	case l.have == nil:
		return "create"
	case len(l.changes()) > 0:
		return "change"
	}
	return "leave"
}

// consent shows what a refresh would change and asks. No difference needs no answer.
func (c *connecting) consent(links []link) error {
	differs := false
	for _, l := range links {
		if changes := l.changes(); len(changes) > 0 {
			differs = true
			fmt.Fprintf(c.out, "  peer %s in context %s:\n%s", l.of.Name, l.context, diff(changes))
		}
	}
	if !differs || c.options.yes {
		return nil
	}
	fmt.Fprint(c.out, "Apply these changes? [y/N] ")
	answer, err := bufio.NewReader(c.in).ReadString('\n')
	if err != nil && answer == "" {
		return errors.New("no answer: nothing was changed; consent with --yes")
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("not consented: nothing was changed")
	}
	return nil
}

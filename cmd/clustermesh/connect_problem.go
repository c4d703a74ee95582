package main

import (
	"errors"
	"fmt"
	"strings"
)

// problem is something that keeps two clusters from being connected, or should be looked at first.
type problem struct {
	Object  string // whose it is: a context, a peer, a pair
	What    string // with the value
	Remedy  string
	Warning bool // it does not stop anything
}

func (p problem) String() string {
	text := p.Object + ": " + p.What
	if p.Remedy != "" {
		text += "; " + p.Remedy
	}
	return text
}

// remedied is an error with what to do about it.
type remedied struct {
	error
	remedy string
}

func (r remedied) Unwrap() error { return r.error }

func (r remedied) Error() string { return r.error.Error() + "; " + r.remedy }

func problemOf(object string, err error) problem {
	var r remedied
	if errors.As(err, &r) {
		return problem{Object: object, What: r.error.Error(), Remedy: r.remedy}
	}
	return problem{Object: object, What: err.Error()}
}

// split parts what stops from what only warns.
func split(problems []problem) (failures, warnings []problem) {
	for _, p := range problems {
		if p.Warning {
			warnings = append(warnings, p)
		} else {
			failures = append(failures, p)
		}
	}
	return failures, warnings
}

// refusal is the error that reports all failures of a preflight together.
func refusal(verb string, failures []problem) error {
	if len(failures) == 0 {
		return nil
	}
	lines := make([]string, len(failures))
	for i, p := range failures {
		lines[i] = "  - " + p.String()
	}
	return fmt.Errorf("%s: %s, nothing was changed:\n%s", verb, counted(len(failures), "problem"), strings.Join(lines, "\n"))
}

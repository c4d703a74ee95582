// Command labnode holds what a lab keeps open on the machine: a node's mount and
// UTS namespaces, and the loopback ports of the API servers.
//
//	labnode hold SPEC                     (started in the new namespaces)
//	labnode forward LISTEN NETNS ADDRESS  (TCP from here to ADDRESS in NETNS)
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "hold":
		return hold(args[1])
	case len(args) == 4 && args[0] == "forward":
		return forward(args[1], args[2], args[3])
	}
	return fmt.Errorf("usage: labnode hold SPEC | forward LISTEN NETNS ADDRESS")
}

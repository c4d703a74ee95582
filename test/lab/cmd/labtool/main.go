// Command labtool is the lab's test server and client, one static binary.
//
//	labtool serve                HTTP :8080, UDP echo :8081, TCP echo :8082; both families
//	labtool get URL              one HTTP request
//	labtool udp [--timeout 2s] HOST[:PORT]
//	                             one UDP exchange: who saw whom, over how many hops
//	labtool tally [--udp] [--count N] [--interval D] [--timeout D] HOST:PORT
//	                             many exchanges, each on a new connection: who answered how often
//	labtool flow --to HOST[:PORT] [--udp] [--interval 5ms] [--duration 10s]
//	                             one long flow of numbered messages: what was lost, and the gaps
//	labtool perfserve [--cpu N]  the other end of perf: TCP :8083 to :8085, :8100 to :8131
//	labtool perf [--cpu N]       measures, as told on standard input: rr|crr|stream ADDRESS DURATION
//	labtool sleep                nothing, until killed
//
// Clients print one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

const usage = "usage: labtool serve | get URL | udp [--timeout D] HOST[:PORT] | tally [--udp] [--count N] [--interval D] HOST:PORT | flow --to HOST[:PORT] [--udp] [--interval D] [--duration D] | perfserve [--cpu N] | perf [--cpu N] | sleep"

// The ports serve listens on.
const (
	httpPort = "8080"
	udpPort  = "8081"
	flowPort = "8082"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labtool:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch verb := args[0]; {
	case verb == "serve" && len(args) == 1:
		return serve(ctx)
	case verb == "get" && len(args) == 2:
		return get(ctx, args[1])
	case verb == "udp":
		return udp(args[1:])
	case verb == "tally":
		return tallyAnswers(ctx, args[1:])
	case verb == "flow":
		return flow(ctx, args[1:])
	case verb == "perfserve":
		return perfserve(ctx, args[1:])
	case verb == "perf":
		return perf(ctx, args[1:], os.Stdin)
	case verb == "sleep":
		<-ctx.Done()
		return nil
	}
	return errors.New(usage)
}

// endpoint adds the port that is missing from host, an address with or without
// brackets.
func endpoint(host, port string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	if len(host) > 1 && host[0] == '[' {
		host = host[1 : len(host)-1]
	}
	return net.JoinHostPort(host, port)
}

func printJSON(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/clustermesh/clustermesh/pkg/config"
)

// options are the command line.
type options struct {
	config     config.Config
	kubeconfig string
	namespace  string
	service    string
	own        []netip.Addr
	zone       string
	ttl        uint
	udpSize    uint
	listen     string
	metrics    string
	health     string
	ready      string
	lameduck   time.Duration
}

func parseOptions(args []string, errOut io.Writer) (options, error) {
	var o options
	var file, own string
	fs := flag.NewFlagSet("clustermesh-dns", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.StringVar(&file, "config", "/etc/clustermesh/config.yaml", "configuration `file`")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file` (default: the pod's service account)")
	fs.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "`namespace` of clustermesh (default $POD_NAMESPACE)")
	fs.StringVar(&o.service, "service", "clustermesh-dns", "`name` of the Service in front of the resolver, whose addresses the zone's name server has")
	fs.StringVar(&own, "addresses", os.Getenv("POD_IPS"), "comma-separated `addresses` of the name server while there is no such Service (default $POD_IPS)")
	fs.StringVar(&o.zone, "zone", "clusterset.local", "`name` of the zone")
	fs.UintVar(&o.ttl, "ttl", 5, "`seconds` for which answers may be kept: 0 to 3600")
	fs.UintVar(&o.udpSize, "max-udp-size", 1232, "`octets` of the longest answer over UDP: 512 to 4096")
	fs.StringVar(&o.listen, "listen", ":53", "`address` of DNS over UDP and TCP")
	fs.StringVar(&o.metrics, "metrics", ":9153", "`address` of /metrics")
	fs.StringVar(&o.health, "health", ":8080", "`address` of /health")
	fs.StringVar(&o.ready, "ready", ":8181", "`address` of /ready")
	fs.DurationVar(&o.lameduck, "lameduck", 5*time.Second, "how long to go on answering when told to end")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("argument %q: this verb takes flags only", fs.Arg(0))
	}
	if o.namespace == "" {
		return o, errors.New("--namespace must be given, or $POD_NAMESPACE be set")
	}
	if o.lameduck < 0 {
		return o, fmt.Errorf("--lameduck: %v is not valid: use 0 or more", o.lameduck)
	}
	for text := range strings.FieldsFuncSeq(own, func(r rune) bool { return r == ',' || r == ' ' }) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return o, fmt.Errorf("--addresses: %q is no address; for example 192.0.2.7,2001:db8::7", text)
		}
		o.own = append(o.own, a)
	}
	var err error
	o.config, err = config.Load(file)
	return o, err
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// servicesFlags are those of `services` and `service explain`.
type servicesFlags struct {
	output  string
	only    string // namespace of `services`
	timeout time.Duration
}

func (f *servicesFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "json prints everything for programs")
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long it may take")
}

func (f *servicesFlags) check() error {
	if f.output != "" && f.output != "json" {
		return fmt.Errorf("--output %q: only json is known", f.output)
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be more than 0, for example 1m", f.timeout)
	}
	return nil
}

func servicesCommand(flags *kubeFlags) *cobra.Command {
	options := &servicesFlags{}
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List where Services lead, as the nodes have it",
		Long: `List the ports of all Services with their addresses and backends, and on how many nodes the kernel holds them.
` + "`clustermesh service explain` says of one Service why each endpoint is used or is not.",
		Example: "  clustermesh services\n  clustermesh services --only shop -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return options.run(cmd, flags, "", func(nodes []nodeServices) *text { return renderServices(nodes, options.only) })
		},
	}
	options.register(cmd)
	cmd.Flags().StringVar(&options.only, "only", "", "list Services of this namespace only")
	cmd.Flags().BoolP("all-namespaces", "A", true, "list Services of all namespaces, which is the default")
	cmd.MarkFlagsMutuallyExclusive("only", "all-namespaces")
	return cmd
}

func serviceCommand(flags *kubeFlags) *cobra.Command {
	options := &servicesFlags{}
	explain := &cobra.Command{
		Use:     "explain NAMESPACE/NAME",
		Short:   "Say where a Service leads on each node, and why each endpoint is used or is not",
		Example: "  clustermesh service explain default/web",
		Args:    one("service", "NAMESPACE/NAME, for example default/web"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if namespace, name, ok := strings.Cut(args[0], "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
				return fmt.Errorf("service %q: use NAMESPACE/NAME, for example default/web", args[0])
			}
			if err := serviceExists(cmd.Context(), *flags, args[0]); err != nil {
				return err
			}
			return options.run(cmd, flags, args[0], func(nodes []nodeServices) *text { return renderExplain(nodes, args[0]) })
		},
	}
	options.register(explain)
	cmd := &cobra.Command{Use: "service", Short: "Look at one Service", Args: cobra.NoArgs}
	cmd.AddCommand(explain)
	return cmd
}

// serviceExists tells a Service that is not there from one that leads nowhere.
func serviceExists(ctx context.Context, flags kubeFlags, service string) error {
	m, err := newMember(flags)
	if err != nil {
		return err
	}
	namespace, name, _ := strings.Cut(service, "/")
	_, err = m.typed.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("service %s: context %s has none by that name; `kubectl get services -A` lists them", service, m.context)
	}
	return err
}

// nodeServices is what the agent of one node said, or why it did not.
type nodeServices struct {
	Node string `json:"node"`
	status.NodeServices
	Trouble string `json:"trouble,omitempty"`
}

// run asks the agents of all nodes about one Service, or about all.
func (f *servicesFlags) run(cmd *cobra.Command, flags *kubeFlags, service string, render func([]nodeServices) *text) error {
	if err := f.check(); err != nil {
		return err
	}
	m, err := newMember(*flags)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	command := []string{"services"}
	if service != "" {
		command = append(command, "--service", service)
	}
	answers, err := askAll[status.NodeServices](ctx, m, agentComponent, command...)
	if err != nil {
		return fmt.Errorf("context %s: %w", m.context, err)
	}
	if len(answers) == 0 {
		return fmt.Errorf("context %s: no agent runs; install clustermesh first", m.context)
	}
	return f.print(cmd.OutOrStdout(), nodesOf(answers), render)
}

func nodesOf(answers []answer[status.NodeServices]) []nodeServices {
	out := make([]nodeServices, 0, len(answers))
	for _, a := range answers {
		n := nodeServices{Node: a.Pod.Spec.NodeName}
		switch {
		case a.Err != nil:
			n.Trouble = a.Err.Error()
		default:
			n.NodeServices = *a.Said
			n.Trouble = a.Said.Error
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b nodeServices) int { return strings.Compare(a.Node, b.Node) })
	return out
}

func (f *servicesFlags) print(out io.Writer, nodes []nodeServices, render func([]nodeServices) *text) error {
	if f.output == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(nodes)
	}
	if _, err := io.WriteString(out, render(nodes).render(colourful(out))); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Trouble != "" {
			return errors.New("not every node has all Services: lines marked ! say why")
		}
	}
	return nil
}

// renderServices has a row for each port, as most nodes see it.
func renderServices(nodes []nodeServices, namespace string) *text {
	t := &text{}
	troubles(t, nodes)
	type row struct {
		port  status.ServicePort
		nodes int
	}
	var order []string
	seen := map[string]*row{}
	ours := 0
	for _, n := range nodes {
		if !n.KubeProxy {
			ours++
		}
		for _, p := range n.Ports {
			if ns, _, _ := strings.Cut(p.Service, "/"); namespace != "" && ns != namespace {
				continue
			}
			key := fmt.Sprint(p.Service, " ", p.Port, p.Protocol)
			if seen[key] == nil {
				seen[key] = &row{port: p}
				order = append(order, key)
			}
			if n.Programmed {
				seen[key].nodes++
			}
		}
	}
	if ours == 0 {
		t.line(plain("Services are kube-proxy's in this cluster (services.kubeProxy is keep)."))
		return t
	}
	rows := [][]cell{plains("SERVICE", "PORT", "ADDRESSES", "BACKENDS", "NODES")}
	for _, key := range order {
		r := seen[key]
		level := status.OK
		if r.nodes < ours {
			level = status.Degraded
		}
		rows = append(rows, []cell{plain(r.port.Service), plain(fmt.Sprintf("%d/%s", r.port.Port, r.port.Protocol)), plain(addresses(r.port)),
			plain(used(r.port)), {fmt.Sprintf("%d of %d", r.nodes, ours), level}})
	}
	t.table(rows)
	return t
}

func troubles(t *text, nodes []nodeServices) {
	for _, n := range nodes {
		if n.Trouble != "" {
			t.line(cell{fmt.Sprintf("! node %s: %s", n.Node, printable(n.Trouble)), status.Degraded})
		}
	}
}

// addresses are those that clients may use, each once.
func addresses(p status.ServicePort) string {
	var out []string
	for _, f := range p.Fronts {
		if f.Owner == "" && !slices.Contains(out, f.Address) {
			out = append(out, f.Address)
		}
	}
	return cmp.Or(strings.Join(out, " "), "-")
}

func used(p status.ServicePort) string {
	n := 0
	for _, e := range p.Endpoints {
		if e.Used {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(p.Endpoints))
}

// renderExplain shows one Service node by node; nodes that have the same to say
// share a part.
func renderExplain(nodes []nodeServices, service string) *text {
	t := &text{}
	troubles(t, nodes)
	var order []string
	same := map[string][]nodeServices{}
	for _, n := range nodes {
		b, err := json.Marshal(n.Ports)
		if err != nil || n.Trouble != "" {
			continue
		}
		if same[string(b)] == nil {
			order = append(order, string(b))
		}
		same[string(b)] = append(same[string(b)], n)
	}
	for _, key := range order {
		group := same[key]
		names := make([]string, 0, len(group))
		for _, n := range group {
			names = append(names, n.Node)
		}
		t.line(plain("On " + strings.Join(names, ", ") + ":"))
		switch first := group[0]; {
		case first.KubeProxy:
			t.line(plain("  Services are kube-proxy's here (services.kubeProxy is keep)."))
		case len(first.Ports) == 0:
			t.line(plain("  Service " + service + " has no address of its own here: it may be headless, of type ExternalName, or for another proxy."))
		default:
			for _, p := range first.Ports {
				explainPort(t, p)
			}
		}
	}
	return t
}

func explainPort(t *text, p status.ServicePort) {
	t.line(plain(fmt.Sprintf("  Port %d/%s %s", p.Port, p.Protocol, p.Name)))
	rows := [][]cell{plains("    ADDRESS", "CLIENTS", "LEADS TO")}
	for _, f := range p.Fronts {
		clients, leads := "all", fmt.Sprintf("%d backends", f.Backends)
		if f.Outside {
			clients = "outside"
		}
		if f.Ranges != "" {
			clients += " in " + f.Ranges
		}
		if f.Verdict != "forward" {
			leads = f.Verdict
		}
		if f.AffinitySeconds > 0 {
			leads += fmt.Sprintf(", each client stays with one for %d s", f.AffinitySeconds)
		}
		level := status.OK
		if f.Owner != "" {
			leads, level = "service "+f.Owner+", which has the address", status.Degraded
		}
		rows = append(rows, []cell{plain("    " + f.Address), plain(clients), {leads, level}})
	}
	t.table(rows)
	rows = [][]cell{plains("    ENDPOINT", "NODE", "ZONE", "USED", "WHY")}
	for _, e := range p.Endpoints {
		used := "no"
		if e.Used {
			used = "yes"
		}
		rows = append(rows, plains("    "+e.Address, cmp.Or(e.Node, "-"), cmp.Or(e.Zone, "-"), used, e.Why))
	}
	if len(p.Endpoints) == 0 {
		rows = [][]cell{plains("    No endpoints: no pod matches the selector, or none has the target port.")}
	}
	t.table(rows)
}

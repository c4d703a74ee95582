// Command clustermesh installs clustermesh in a Kubernetes cluster and joins clusters into one mesh.
// It changes clusters only through their Kubernetes API; it holds no state of its own.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/clustermesh/clustermesh/pkg/version"
)

func main() {
	// client-go logs what it also returns as errors.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	err := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// run executes one command line, args[0] being the program's name. Results go to out; progress and
// warnings go to errOut, so that `-o yaml` and `-o json` can always be piped.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	root := rootCommand(args[0])
	root.SetArgs(args[1:])
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	return root.ExecuteContext(ctx)
}

func rootCommand(program string) *cobra.Command {
	flags := &kubeFlags{}
	root := &cobra.Command{
		Use:           "clustermesh",
		Short:         "Join Kubernetes clusters into one flat network without gateways",
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	if filepath.Base(program) == "kubectl-clustermesh" {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl clustermesh"}
	}
	flags.register(root.PersistentFlags())
	root.AddCommand(verbs(flags)...)
	return root
}

// verbs lists what the program can do, one file each.
func verbs(flags *kubeFlags) []*cobra.Command {
	return []*cobra.Command{
		installCommand(flags),
		upgradeCommand(flags),
		uninstallCommand(flags),
		connectCommand(flags),
		disconnectCommand(flags),
		statusCommand(flags),
		peersCommand(flags),
		servicesCommand(flags),
		serviceCommand(flags),
		troubleshootCommand(flags),
		versionCommand(),
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program, which is the version it installs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Version)
			return err
		},
	}
}

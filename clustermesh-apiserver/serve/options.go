package serve

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/clustermesh/clustermesh/pkg/config"
)

// DefaultSocket is where a server answers `clustermesh-apiserver status`.
const DefaultSocket = "/run/clustermesh/apiserver.sock"

// Options are the command line.
type Options struct {
	Config        config.Config
	DataDir       string // of the embedded etcd
	EtcdEndpoints []string
	EtcdTLSDir    string // tls.crt, tls.key, ca.crt for an external etcd; "" or absent: none
	Socket        string
	MeshListen    string // address of the mesh API
	Listen        string // address of metrics and health
	Kubeconfig    string // "": the pod's service account
	Namespace     string
	Pod           string // this replica's name
	Node          string
}

// ParseOptions reads the command line and the configuration file.
func ParseOptions(args []string, errOut io.Writer) (Options, error) {
	var o Options
	var file, etcd string
	fs := flag.NewFlagSet("clustermesh-apiserver", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.StringVar(&file, "config", "/etc/clustermesh/config.yaml", "configuration `file`")
	fs.StringVar(&o.DataDir, "data-dir", "/var/lib/clustermesh-apiserver", "`directory` of the embedded etcd")
	fs.StringVar(&etcd, "etcd-endpoints", "", "comma-separated `URLs` of an etcd cluster to use instead (default apiserver.etcdEndpoints)")
	fs.StringVar(&o.EtcdTLSDir, "etcd-tls-dir", "/etc/clustermesh-etcd", "`directory` with tls.crt, tls.key and ca.crt for --etcd-endpoints, if it is there")
	fs.StringVar(&o.Socket, "socket", DefaultSocket, "unix socket for status")
	fs.StringVar(&o.MeshListen, "mesh-listen", "", "`address` of the mesh API (default :apiserver.port)")
	fs.StringVar(&o.Listen, "listen", ":9474", "`address` of metrics and health")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` (default: the pod's service account)")
	fs.StringVar(&o.Namespace, "namespace", os.Getenv("POD_NAMESPACE"), "`namespace` of clustermesh (default $POD_NAMESPACE)")
	fs.StringVar(&o.Pod, "pod", os.Getenv("POD_NAME"), "`name` of this replica (default $POD_NAME)")
	fs.StringVar(&o.Node, "node", os.Getenv("NODE_NAME"), "`name` of the node it runs on (default $NODE_NAME)")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("argument %q: this verb takes flags only", fs.Arg(0))
	}
	if o.Namespace == "" || o.Pod == "" {
		return o, errors.New("--namespace and --pod must be given, or $POD_NAMESPACE and $POD_NAME be set")
	}
	var err error
	if o.Config, err = config.Load(file); err != nil {
		return o, err
	}
	o.EtcdEndpoints = o.Config.APIServer.EtcdEndpoints
	if etcd != "" {
		o.EtcdEndpoints = strings.Split(etcd, ",")
	}
	if o.MeshListen == "" {
		o.MeshListen = fmt.Sprintf(":%d", o.Config.APIServer.Port)
	}
	o.DataDir = filepath.Clean(o.DataDir)
	return o, nil
}

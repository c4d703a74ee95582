package status

// NodeServices is what an agent says of Services on GET /v1/services.
type NodeServices struct {
	Node string `json:"node"`
	// KubeProxy says that Services are kube-proxy's here; all else is empty.
	KubeProxy bool `json:"kubeProxy,omitempty"`
	// Programmed says that the kernel holds what follows.
	Programmed bool          `json:"programmed"`
	Error      string        `json:"error,omitempty"` // why it does not
	Ports      []ServicePort `json:"ports"`
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Service   string            `json:"service"` // namespace/name
	Name      string            `json:"name,omitempty"`
	Protocol  string            `json:"protocol"`
	Port      uint16            `json:"port"`
	Fronts    []ServiceFront    `json:"fronts"`
	Endpoints []ServiceEndpoint `json:"endpoints"`
}

// ServiceFront is what becomes of connections to one address.
type ServiceFront struct {
	Address         string `json:"address"` // with the port
	Outside         bool   `json:"outside,omitempty"`
	Verdict         string `json:"verdict"` // forward, reject, drop
	Backends        int    `json:"backends"`
	AffinitySeconds uint32 `json:"affinitySeconds,omitempty"`
	Ranges          string `json:"ranges,omitempty"`
	Owner           string `json:"owner,omitempty"` // the other Service that has the address
}

// ServiceEndpoint is one endpoint, and why it is used or is not.
type ServiceEndpoint struct {
	Address string `json:"address"` // with the port
	Node    string `json:"node,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Used    bool   `json:"used"`
	Why     string `json:"why"`
}

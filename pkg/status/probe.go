package status

// The steps of a probe, in the order in which they are taken.
const (
	ProbeDNS           = "dns"
	ProbeTCP           = "tcp"
	ProbeTLS           = "tls"
	ProbeCertificate   = "certificate"
	ProbeAuthorisation = "authorisation"
	ProbeHeartbeat     = "heartbeat"
)

// Probe is what `clustermesh-apiserver probe` found out about one endpoint of
// a peer's mesh API.
type Probe struct {
	Endpoint string `json:"endpoint"`
	// Reachable says that the endpoint answers with the certificate of that
	// cluster. It may still refuse us: before `connect` it does not know us.
	Reachable     bool   `json:"reachable"`
	ServerVersion string `json:"serverVersion,omitempty"`
	Error         string `json:"error,omitempty"` // of the first step that failed and makes it unreachable
	// Steps end with the first that failed.
	Steps []ProbeStep `json:"steps,omitempty"`
}

// ProbeStep is one thing that was tried.
type ProbeStep struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // what was found: addresses, TLS version, names of the certificate, …
	Error  string `json:"error,omitempty"`
}

package model

// ServicePortKey names one port of a Service: its name in the object, empty
// where there is only one.
type ServicePortKey struct{ Namespace, Name, Port string }

// Service names the Service that the port is of, as people write it.
func (k ServicePortKey) Service() string { return k.Namespace + "/" + k.Name }

func (k ServicePortKey) String() string {
	if k.Port == "" {
		return k.Service()
	}
	return k.Service() + ":" + k.Port
}

// ServicePort is one port of a Service, with what the Service says for all of
// its ports. Lists are texts, sorted, separated by spaces, so that rows can be
// compared.
type ServicePort struct {
	Protocol        uint8 // IANA number: 6 TCP, 17 UDP, 132 SCTP
	Port            uint16
	NodePort        uint16 // 0: none
	ClusterIPs      Addrs
	ExternalIPs     string // addresses
	LoadBalancerIPs string // addresses of the status that are to be served here (ipMode VIP)
	SourceRanges    string // prefixes that may use LoadBalancerIPs; empty: everybody
	AffinitySeconds uint32 // of session affinity ClientIP; 0: none
	// InternalLocal and ExternalLocal are the traffic policies Local.
	InternalLocal, ExternalLocal bool
	HealthCheckNodePort          uint16 // 0: none
	CreatedUnix                  int64  // seconds since 1970; of two that claim one address the older has it
}

// SliceKey names an EndpointSlice of a cluster. Its row is the encoding of
// pkg/wire.Slice, which is compact and can be compared.
type SliceKey struct{ Cluster, Namespace, Name string }

package model

// ServiceImport is what DNS needs to know of a ServiceImport (KEP-1645): a name
// that the whole cluster set knows.
type ServiceImport struct {
	Headless bool
	IPs      Addrs  // of type ClusterSetIP
	Ports    string // see ImportSlice
}

// ImportSlice is what DNS needs to know of an EndpointSlice behind a
// ServiceImport. Lists are texts, so that rows can be compared.
type ImportSlice struct {
	Service string // name of the ServiceImport, in the slice's namespace
	Cluster string // where the endpoints are
	// Endpoints are the ready ones: "address" or "address=hostname", sorted,
	// separated by spaces.
	Endpoints string
	// Ports are "name/protocol/number", protocols in lower case, separated by
	// spaces. The name may be empty; number 0 stands for no particular one.
	Ports string
	// ChangedUnixMilli is when the change happened that the slice tells of; 0 if
	// it does not say.
	ChangedUnixMilli int64
}

// Namespace is the row of a namespace, of which only the name counts.
type Namespace struct{}

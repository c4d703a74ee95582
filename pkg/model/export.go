package model

// ServiceKey names a Service, and what has the same name: its ServiceExport and
// its ServiceImport.
type ServiceKey struct{ Namespace, Name string }

func (k ServiceKey) String() string { return k.Namespace + "/" + k.Name }

// ExportKey names what one cluster says of a Service. Its row is the encoding of
// pkg/wire.Export or pkg/wire.Service.
type ExportKey struct{ Cluster, Namespace, Name string }

// Service is the Service that the row is about.
func (k ExportKey) Service() ServiceKey { return ServiceKey{k.Namespace, k.Name} }

// Package version holds the version that the build stamped into the binaries.
package version

// Version is the product version, a semantic version without a leading v; set
// with -ldflags "-X github.com/clustermesh/clustermesh/pkg/version.Version=…".
var Version = "0.1.0-dev"

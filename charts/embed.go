// Package charts carries the Helm chart, so that the CLI installs exactly the chart of its own version.
// It holds files and decides nothing.
package charts

import "embed"

// Files holds the chart under "clustermesh/". `all:` keeps the templates whose names begin with an underscore.
//
//go:embed all:clustermesh
var Files embed.FS

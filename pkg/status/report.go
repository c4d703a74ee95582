package status

import "time"

// Agent is what an agent says of itself on GET /v1/status.
type Agent struct {
	Cluster  string    `json:"cluster"`
	Node     string    `json:"node"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`   // it can serve CNI ADD
	Backend  string    `json:"backend"` // auto, direct, vxlan
	MTU      int       `json:"mtu"`     // of pods
	Pods     int       `json:"pods"`
	Nodes    []Remote  `json:"nodes"` // every other node it has a route to
	MeshSync bool      `json:"meshSync"`
	Lines    []Line    `json:"lines"`
}

// Remote is how an agent reaches another node.
type Remote struct {
	Cluster  string   `json:"cluster"`
	Node     string   `json:"node"`
	Via      string   `json:"via"`     // the address that packets are sent to
	Backend  string   `json:"backend"` // direct or vxlan
	Prefixes []string `json:"prefixes"`
}

// APIServer is what an API server says of itself on GET /v1/status.
type APIServer struct {
	Cluster   string    `json:"cluster"`
	Replica   string    `json:"replica"`
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Leader    bool      `json:"leader"`
	Endpoints []string  `json:"endpoints"` // told to peers
	// CABundle is PEM: the certificates that a Peer of this cluster must trust.
	// It is public, and told here so that nobody reads it from beside its key.
	CABundle string `json:"caBundle,omitempty"`
	// MinWire and MaxWire are the encodings of rows that it reads.
	MinWire uint8  `json:"minWire,omitempty"`
	MaxWire uint8  `json:"maxWire,omitempty"`
	Rows    int64  `json:"rows"` // in the store, own and mirrored
	Peers   []Peer `json:"peers"`
	Lines   []Line `json:"lines"`
}

// Peer is the state of the link to one peer as one API server sees it.
type Peer struct {
	Name             string         `json:"name"`
	Connected        bool           `json:"connected"`
	Synced           bool           `json:"synced"`
	Endpoint         string         `json:"endpoint,omitempty"` // in use
	Incarnation      string         `json:"incarnation,omitempty"`
	HeartbeatSeconds float64        `json:"heartbeatAgeSeconds"` // -1: none seen
	Since            time.Time      `json:"since"`               // of Connected's last change
	Error            string         `json:"error,omitempty"`
	Counts           map[string]int `json:"counts"` // admitted rows by kind
	Refused          []Refusal      `json:"refused,omitempty"`
}

// Refusal counts rows that were not admitted for one reason, with the newest
// one as an example.
type Refusal struct {
	Reason  string `json:"reason"`
	Count   int64  `json:"count"` // rows refused now, not events
	Example string `json:"example"`
	Message string `json:"message"`
}

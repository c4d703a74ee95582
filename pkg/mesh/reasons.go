package mesh

import (
	"fmt"

	"github.com/clustermesh/clustermesh/pkg/wire"
)

// Reason says why a row is not admitted. It is a metric's label: the set is fixed.
type Reason string

// The reasons.
const (
	BadKey            Reason = "bad-key"             // the key can't be read, or is not in canonical form
	BadValue          Reason = "bad-value"           // the value can't be decoded
	TooLarge          Reason = "too-large"           // the value is larger than any sane one
	UnknownVersion    Reason = "unknown-version"     // the value is of an encoding that this version can't read
	ForeignCluster    Reason = "foreign-cluster"     // it names another cluster than its peer
	IdentityMismatch  Reason = "identity-mismatch"   // its number does not follow from its labels
	CIDRNotAllowed    Reason = "cidr-not-allowed"    // a pod address outside of spec.import.podCIDRs
	CIDROverlap       Reason = "cidr-overlap"        // a pod range of ours or of another node
	BadAddress        Reason = "bad-address"         // an address that no node can have
	AddressNotAllowed Reason = "address-not-allowed" // a node address outside of spec.import.nodeCIDRs
	AddressConflict   Reason = "address-conflict"    // a node address of ours, of another peer or of another node
	OverLimit         Reason = "limit"               // more than spec.import.limits
)

// Reasons is all of them.
func Reasons() []Reason {
	return []Reason{BadKey, BadValue, TooLarge, UnknownVersion, ForeignCluster, IdentityMismatch, CIDRNotAllowed,
		CIDROverlap, BadAddress, AddressNotAllowed, AddressConflict, OverLimit}
}

// Refusal is why a row is not admitted.
type Refusal struct {
	Reason  Reason
	Message string
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Message }

// maxMessage bounds what a stranger's row can make us show.
const maxMessage = 300

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{reason, wire.Shown(fmt.Sprintf(format, args...), maxMessage)}
}

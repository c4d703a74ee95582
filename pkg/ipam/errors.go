package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/clustermesh/clustermesh/pkg/model"
)

// ErrNoPrefix means that the node has no pod CIDR yet.
var ErrNoPrefix = errors.New("this node has no pod CIDR")

// ExhaustedError means that every address of a prefix is in use.
type ExhaustedError struct {
	Prefix   netip.Prefix
	Capacity uint64
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("pod CIDR %s: all %d addresses are in use", e.Prefix, e.Capacity)
}

// ConflictError means that an address belongs to somebody else.
type ConflictError struct {
	Addr          netip.Addr
	Owner, Holder model.PodKey
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("address %s of %s/%s is held by %s/%s", e.Addr,
		e.Owner.ContainerID, e.Owner.IfName, e.Holder.ContainerID, e.Holder.IfName)
}
